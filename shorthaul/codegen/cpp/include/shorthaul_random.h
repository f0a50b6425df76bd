// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// key = (seed low, seed high), counter = (index low, index high, offset low, offset high); a uniform number is
// (word 0 >> 8) * 2^-24. It depends on (seed, offset, index) alone: not on lanes, tiles or threads. The same definition
// stands in shorthaul/ir/philox.py.
#pragma once
#include "shorthaul_math.h"

namespace sh {
namespace native {

using u32x4 = piece<uint32_t, 4>; using u32x8 = piece<uint32_t, 8>; using u32x16 = piece<uint32_t, 16>;

// 64-bit products of the even 32-bit lanes with m.
template <class V> SH_INLINE auto multiply_even(V a, uint32_t m) {
  using D = piece<uint64_t, count<V> / 2>;
  return ((D)a & 0xffffffffu) * uint64_t(m);
}
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
SH_INLINE auto multiply_even(u32x4 a, uint32_t m) {
  return (piece<uint64_t, 2>)__builtin_ia32_pmuludq128((piece<int, 4>)a, (piece<int, 4>)splat<u32x4>(m));
}
#ifdef __AVX2__
SH_INLINE auto multiply_even(u32x8 a, uint32_t m) {
  return (piece<uint64_t, 4>)__builtin_ia32_pmuludq256((piece<int, 8>)a, (piece<int, 8>)splat<u32x8>(m));
}
#endif
#ifdef SH_AVX512
SH_INLINE auto multiply_even(u32x16 a, uint32_t m) {
  return (piece<uint64_t, 8>)__builtin_ia32_pmuludq512_mask((piece<int, 16>)a, (piece<int, 16>)splat<u32x16>(m),
                                                            piece<long long, 8>{}, -1);
}
#endif
#endif

template <class V> SH_INLINE void multiply_wide(V a, uint32_t m, V &hi, V &lo) {
  const auto even = multiply_even(a, m);
  const auto odd = multiply_even((V)((decltype(even))a >> 32), m);
  hi = (V)((even >> 32) | (odd & 0xffffffff00000000u));
  lo = a * m;
}

template <class V> SH_INLINE void philox(V &c0, V &c1, V &c2, V &c3, uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  _Pragma("GCC unroll 10") for (int i = 0; i < 10; ++i) {
    V h0, l0, h1, l1;
    multiply_wide<V>(c0, 0xD2511F53u, h0, l0);
    multiply_wide<V>(c2, 0xCD9E8D57u, h1, l1);
    c0 = h1 ^ c1 ^ k0; c1 = l1;
    c2 = h0 ^ c3 ^ k1; c3 = l0;
    k0 += 0x9E3779B9u; k1 += 0xBB67AE85u;
  }
}
}  // namespace native

// Words 0 and 1 of the block of each index.
template <int N> struct philox_words { vec<uint32_t, N> w0, w1; };
template <int N> SH_INLINE philox_words<N> philox(int64_t seed, int64_t offset, vec<int64_t, N> index) {
  using V = typename vec<uint32_t, N>::piece;
  vec<int64_t, N> high = index;
  SH_EACH((vec<int64_t, N>::K), high.p[k] >>= 32);
  philox_words<N> r{convert_vec<uint32_t, N>(index), convert_vec<uint32_t, N>(high)};
  SH_EACH((vec<uint32_t, N>::K), V c2 = native::splat<V>(uint32_t(offset)); V c3 = native::splat<V>(uint32_t(uint64_t(offset) >> 32));
          native::philox<V>(r.w0.p[k], r.w1.p[k], c2, c3, uint64_t(seed)));
  return r;
}

// (w >> 8) * 2^-24, in [0, 1).
template <int N> SH_INLINE vec<float, N> unit_interval(vec<uint32_t, N> w) {
  SH_EACH((vec<uint32_t, N>::K), w.p[k] >>= 8);
  return mul(convert_vec<float, N>(same_bits<int32_t>(w)), 0x1p-24f);
}
template <int N> SH_INLINE vec<float, N> philox_uniform(int64_t seed, int64_t offset, vec<int64_t, N> index) {
  return unit_interval(philox(seed, offset, index).w0);
}
// Box-Muller: sqrt(-2 log(1 - u0)) cos(2 pi u1).
template <int N> SH_INLINE vec<float, N> philox_normal(int64_t seed, int64_t offset, vec<int64_t, N> index) {
  const auto w = philox(seed, offset, index);
  const auto radius = sqrt(mul(log(sub(1.f, unit_interval(w.w0))), -2.f));
  return mul(radius, cos(mul(unit_interval(w.w1), 6.28318530717958648f)));
}
template <class I> SH_INLINE float philox_uniform(int64_t seed, int64_t offset, I index) {
  return philox_uniform(seed, offset, splat_n<int64_t, 4>(number<I>(index)))[0];
}
template <class I> SH_INLINE float philox_normal(int64_t seed, int64_t offset, I index) {
  return philox_normal(seed, offset, splat_n<int64_t, 4>(number<I>(index)))[0];
}

}  // namespace sh
