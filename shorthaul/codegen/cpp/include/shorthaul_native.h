// Native SIMD pieces: one hardware register of T, written with the vector extensions of GCC and Clang, so that
// the same text becomes AVX-512, AVX2, SSE2 or NEON code. Only what the extensions cannot say (square root,
// rounding, fused multiply-add, scaling by a power of two) goes through builtins, chosen by #if below.
//
// No standard header but <stdint.h>: the C library's functions are reached as __builtin_xxx, because <cmath>
// alone costs more compile time than everything here.
#pragma once
#include <stdint.h>

#define SH_INLINE static inline __attribute__((always_inline))
#define SH_METHOD inline __attribute__((always_inline))

// GCC notes that vectors change the calling convention between instruction sets; nothing here is a real call.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace sh {

#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__) && defined(__AVX512BW__)
#define SH_AVX512 1
constexpr int register_bytes = 64;
constexpr int W = 16;  // lanes of one kernel, whatever the element types: all types share it, so casts are lane-wise
#elif defined(__AVX2__)
constexpr int register_bytes = 32;
constexpr int W = 8;
#else
constexpr int register_bytes = 16;
constexpr int W = 8;
#endif

// Storage-only types: load them, cast<float> them, compute, cast back, store.
struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

namespace native {

template <class T, int M> struct piece_of { typedef T type __attribute__((vector_size(M * sizeof(T)))); };
template <class T, int M> using piece = typename piece_of<T, M>::type;

template <int Bytes> struct int_of;
template <> struct int_of<1> { using type = int8_t; using utype = uint8_t; };
template <> struct int_of<2> { using type = int16_t; using utype = uint16_t; };
template <> struct int_of<4> { using type = int32_t; using utype = uint32_t; };
template <> struct int_of<8> { using type = int64_t; using utype = uint64_t; };

template <class T> struct plain { using type = T; };
template <class T> struct plain<T &> { using type = T; };
template <class T> struct plain<const T &> { using type = T; };
template <class V> using elem = typename plain<decltype(V{}[0])>::type;          // element type of a piece
template <class V> constexpr int count = sizeof(V) / sizeof(elem<V>);            // its number of lanes
template <class V> using ints = piece<typename int_of<sizeof(elem<V>)>::type, count<V>>;    // same shape, integers
template <class V> using uints = piece<typename int_of<sizeof(elem<V>)>::utype, count<V>>;

template <class To, class From> SH_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "bit cast between different sizes");
  return (To)x;
}
template <class V> SH_INLINE V splat(elem<V> x) { return x - V{}; }  // x - 0 keeps -0.0, 0 + x does not
template <class V> SH_INLINE V select(ints<V> m, V a, V b) { return m ? a : b; }

// Unaligned access. A vector type aliases its element type and nothing else, so the compiler may keep pointers in
// registers across a store (a memcpy would forbid that).
template <class V> SH_INLINE V load(const elem<V> *p) {
  typedef V unaligned __attribute__((aligned(sizeof(elem<V>))));
  return *(const unaligned *)p;
}
template <class V> SH_INLINE void store(elem<V> *p, V v) {
  typedef V unaligned __attribute__((aligned(sizeof(elem<V>))));
  *(unaligned *)p = v;
}

// Applies a scalar function to each lane: the fallback where no vector form exists.
#define SH_LANES(V, expr) \
  V sh_r; \
  _Pragma("GCC unroll 64") for (int j = 0; j < count<V>; ++j) sh_r[j] = (expr); \
  return sh_r

// ---------------------------------------------------------------- square root, rounding, fma, power-of-two scaling
enum rounding { nearest_even = 0, toward_floor = 1, toward_ceil = 2, toward_zero = 3 };

template <class V> SH_INLINE V sqrt(V x) {
#if defined(__clang__)
  return __builtin_elementwise_sqrt(x);
#else
  if constexpr (sizeof(elem<V>) == 4) { SH_LANES(V, __builtin_sqrtf(x[j])); }
  else { SH_LANES(V, __builtin_sqrt(x[j])); }
#endif
}

template <int Mode, class V> SH_INLINE V round_to(V x) {
#if defined(__clang__)
  if constexpr (Mode == nearest_even) return __builtin_elementwise_roundeven(x);
  else if constexpr (Mode == toward_floor) return __builtin_elementwise_floor(x);
  else if constexpr (Mode == toward_ceil) return __builtin_elementwise_ceil(x);
  else return __builtin_elementwise_trunc(x);
#else
  // Adding and subtracting 2^23 (2^52) rounds to the nearest even integer; the other modes correct that by one.
  using T = elem<V>;
  const V big = splat<V>(sizeof(T) == 4 ? T(8388608.0) : T(4503599627370496.0));
  const ints<V> sign = bits<ints<V>>(x) & bits<ints<V>>(splat<V>(T(-0.0)));
  const V a = bits<V>(bits<ints<V>>(x) ^ sign);
  V r = (a + big) - big;
  if constexpr (Mode == toward_zero) r = select<V>(r > a, r - T(1), r);
  r = bits<V>(bits<ints<V>>(r) | sign);
  if constexpr (Mode == toward_floor) r = select<V>(r > x, r - T(1), r);
  if constexpr (Mode == toward_ceil) r = select<V>(r < x, r + T(1), r);
  return select<V>(a < big, r, x);  // large values, infinities and NaN are whole already
#endif
}

template <class V> SH_INLINE V fma(V a, V b, V c) {
#if defined(__clang__)
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;  // fused by -ffp-contract=fast where the machine can
#endif
}

using f4 = piece<float, 4>; using f8 = piece<float, 8>; using f16 = piece<float, 16>;
using d2 = piece<double, 2>; using d4 = piece<double, 4>; using d8 = piece<double, 8>;

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
SH_INLINE f4 sqrt(f4 x) { return __builtin_ia32_sqrtps(x); }
SH_INLINE d2 sqrt(d2 x) { return __builtin_ia32_sqrtpd(x); }
#if defined(__AVX2__) && defined(__FMA__)
template <int Mode> SH_INLINE f4 round_to(f4 x) { return __builtin_ia32_roundps(x, Mode | 8); }
template <int Mode> SH_INLINE d2 round_to(d2 x) { return __builtin_ia32_roundpd(x, Mode | 8); }
template <int Mode> SH_INLINE f8 round_to(f8 x) { return __builtin_ia32_roundps256(x, Mode | 8); }
template <int Mode> SH_INLINE d4 round_to(d4 x) { return __builtin_ia32_roundpd256(x, Mode | 8); }
SH_INLINE f8 sqrt(f8 x) { return __builtin_ia32_sqrtps256(x); }
SH_INLINE d4 sqrt(d4 x) { return __builtin_ia32_sqrtpd256(x); }
SH_INLINE f4 fma(f4 a, f4 b, f4 c) { return __builtin_ia32_vfmaddps(a, b, c); }
SH_INLINE d2 fma(d2 a, d2 b, d2 c) { return __builtin_ia32_vfmaddpd(a, b, c); }
SH_INLINE f8 fma(f8 a, f8 b, f8 c) { return __builtin_ia32_vfmaddps256(a, b, c); }
SH_INLINE d4 fma(d4 a, d4 b, d4 c) { return __builtin_ia32_vfmaddpd256(a, b, c); }
#endif
#ifdef SH_AVX512
template <int Mode> SH_INLINE f16 round_to(f16 x) { return __builtin_ia32_rndscaleps_mask(x, Mode | 8, x, -1, 4); }
template <int Mode> SH_INLINE d8 round_to(d8 x) { return __builtin_ia32_rndscalepd_mask(x, Mode | 8, x, -1, 4); }
SH_INLINE f16 sqrt(f16 x) { return __builtin_ia32_sqrtps512_mask(x, x, -1, 4); }
SH_INLINE d8 sqrt(d8 x) { return __builtin_ia32_sqrtpd512_mask(x, x, -1, 4); }
SH_INLINE f16 fma(f16 a, f16 b, f16 c) { return __builtin_ia32_vfmaddps512_mask(a, b, c, -1, 4); }
SH_INLINE d8 fma(d8 a, d8 b, d8 c) { return __builtin_ia32_vfmaddpd512_mask(a, b, c, -1, 4); }
#endif
#endif

// The first n lanes from memory, zeros in the others; and the first n lanes to memory. n <= 0 touches nothing, n beyond
// the lanes means all.
template <class V> SH_INLINE V load_first(const elem<V> *p, int n) {
#if defined(SH_AVX512) && !defined(__clang__)
  const uint32_t m = n <= 0 ? 0 : n >= count<V> ? (1u << count<V>) - 1 : (1u << n) - 1;
  constexpr int e = sizeof(elem<V>);
  if constexpr (e == 4 && sizeof(V) == 64) {
    return (V)__builtin_ia32_loaddqusi512_mask((const int *)p, piece<int, 16>{}, uint16_t(m));
  } else if constexpr (e == 8 && sizeof(V) == 64) {
    return (V)__builtin_ia32_loaddqudi512_mask((const long long *)p, piece<long long, 8>{}, uint8_t(m));
  } else if constexpr (e == 2 && sizeof(V) == 32) {
    return (V)__builtin_ia32_loaddquhi256_mask((const short *)p, piece<short, 16>{}, uint16_t(m));
  } else if constexpr (e == 1 && sizeof(V) == 16) {
    return (V)__builtin_ia32_loaddquqi128_mask((const char *)p, piece<char, 16>{}, uint16_t(m));
  } else
#elif defined(__AVX2__) && !defined(__clang__)
  constexpr int e = sizeof(elem<V>);
  if constexpr (e == 4 && sizeof(V) == 32) {
    return (V)__builtin_ia32_maskloadd256((const piece<int, 8> *)p, piece<int, 8>{0, 1, 2, 3, 4, 5, 6, 7} < n);
  } else if constexpr (e == 8 && sizeof(V) == 32) {
    return (V)__builtin_ia32_maskloadq256((const piece<long long, 4> *)p, piece<long long, 4>{0, 1, 2, 3} < (long long)n);
  } else
#endif
  {
    elem<V> buffer[count<V>];
    for (int j = 0; j < count<V>; ++j) buffer[j] = j < n ? p[j] : elem<V>(0);
    return load<V>(buffer);
  }
}
template <class V> SH_INLINE void store_first(elem<V> *p, V v, int n) {
#if defined(SH_AVX512) && !defined(__clang__)
  const uint32_t m = n <= 0 ? 0 : n >= count<V> ? (1u << count<V>) - 1 : (1u << n) - 1;
  constexpr int e = sizeof(elem<V>);
  if constexpr (e == 4 && sizeof(V) == 64) {
    __builtin_ia32_storedqusi512_mask((int *)p, (piece<int, 16>)v, uint16_t(m));
  } else if constexpr (e == 8 && sizeof(V) == 64) {
    __builtin_ia32_storedqudi512_mask((long long *)p, (piece<long long, 8>)v, uint8_t(m));
  } else if constexpr (e == 2 && sizeof(V) == 32) {
    __builtin_ia32_storedquhi256_mask((short *)p, (piece<short, 16>)v, uint16_t(m));
  } else if constexpr (e == 1 && sizeof(V) == 16) {
    __builtin_ia32_storedquqi128_mask((char *)p, (piece<char, 16>)v, uint16_t(m));
  } else
#elif defined(__AVX2__) && !defined(__clang__)
  constexpr int e = sizeof(elem<V>);
  if constexpr (e == 4 && sizeof(V) == 32) {
    __builtin_ia32_maskstored256((piece<int, 8> *)p, piece<int, 8>{0, 1, 2, 3, 4, 5, 6, 7} < n, (piece<int, 8>)v);
  } else if constexpr (e == 8 && sizeof(V) == 32) {
    __builtin_ia32_maskstoreq256((piece<long long, 4> *)p, piece<long long, 4>{0, 1, 2, 3} < (long long)n,
                                 (piece<long long, 4>)v);
  } else
#endif
  {
    elem<V> buffer[count<V>];
    store<V>(buffer, v);
    for (int j = 0; j < count<V>; ++j) if (j < n) p[j] = buffer[j];
  }
}

// p * 2^n for p near 1 and |n| below twice the exponent range; one rounding, so denormal results are right.
template <class V> SH_INLINE V scale(V p, ints<V> n) {
  constexpr int mantissa = sizeof(elem<V>) == 4 ? 23 : 52;
  constexpr int bias = sizeof(elem<V>) == 4 ? 127 : 1023;
  const ints<V> half = n >> 1;
  return p * bits<V>((half + bias) << mantissa) * bits<V>((n - half + bias) << mantissa);
}

// The same, given n both as a floating-point whole number and as integers: one instruction with AVX-512.
template <class V> SH_INLINE V scale_by(V p, V n, ints<V> n_bits) { (void)n; return scale<V>(p, n_bits); }
#if defined(SH_AVX512) && !defined(__clang__)
SH_INLINE f16 scale_by(f16 p, f16 n, ints<f16>) { return __builtin_ia32_scalefps512_mask(p, n, p, -1, 4); }
SH_INLINE d8 scale_by(d8 p, d8 n, ints<d8>) { return __builtin_ia32_scalefpd512_mask(p, n, p, -1, 4); }
#endif

// The lanes where m (0 or -1 in each) is set, `fill` in the others, whose memory is not touched; and the same for writing.
template <class V> SH_INLINE V load_where(ints<V> m, const elem<V> *p, V fill) {
  constexpr int e = sizeof(elem<V>);
#if defined(SH_AVX512) && !defined(__clang__)
  if constexpr (e == 4 && sizeof(V) == 64) {
    return (V)__builtin_ia32_loaddqusi512_mask((const int *)p, (piece<int, 16>)fill, __builtin_ia32_cvtd2mask512((piece<int, 16>)m));
  } else if constexpr (e == 8 && sizeof(V) == 64) {
    return (V)__builtin_ia32_loaddqudi512_mask((const long long *)p, (piece<long long, 8>)fill,
                                               __builtin_ia32_cvtq2mask512((piece<long long, 8>)m));
  } else
#elif defined(__AVX2__) && !defined(__clang__)
  if constexpr (e == 4 && sizeof(V) == 32) {
    return m ? (V)__builtin_ia32_maskloadd256((const piece<int, 8> *)p, (piece<int, 8>)m) : fill;
  } else if constexpr (e == 8 && sizeof(V) == 32) {
    return m ? (V)__builtin_ia32_maskloadq256((const piece<long long, 4> *)p, (piece<long long, 4>)m) : fill;
  } else
#endif
  {
    (void)e;
    for (int j = 0; j < count<V>; ++j) if (m[j]) fill[j] = p[j];
    return fill;
  }
}
template <class V> SH_INLINE void store_where(ints<V> m, elem<V> *p, V v) {
  constexpr int e = sizeof(elem<V>);
#if defined(SH_AVX512) && !defined(__clang__)
  if constexpr (e == 4 && sizeof(V) == 64) {
    __builtin_ia32_storedqusi512_mask((int *)p, (piece<int, 16>)v, __builtin_ia32_cvtd2mask512((piece<int, 16>)m));
  } else if constexpr (e == 8 && sizeof(V) == 64) {
    __builtin_ia32_storedqudi512_mask((long long *)p, (piece<long long, 8>)v,
                                      __builtin_ia32_cvtq2mask512((piece<long long, 8>)m));
  } else
#elif defined(__AVX2__) && !defined(__clang__)
  if constexpr (e == 4 && sizeof(V) == 32) {
    __builtin_ia32_maskstored256((piece<int, 8> *)p, (piece<int, 8>)m, (piece<int, 8>)v);
  } else if constexpr (e == 8 && sizeof(V) == 32) {
    __builtin_ia32_maskstoreq256((piece<long long, 4> *)p, (piece<long long, 4>)m, (piece<long long, 4>)v);
  } else
#endif
  {
    (void)e;
    for (int j = 0; j < count<V>; ++j) if (m[j]) p[j] = v[j];
  }
}

// float16 in the low half of 32-bit lanes, to and from float, by integer arithmetic (exact; round to nearest even).
template <class F> SH_INLINE F half_to_float(uints<F> h) {
  using U = uints<F>;
  const U magnitude = (h & 0x7fffu) << 13;
  const U scaled = bits<U>(bits<F>(magnitude) * 0x1p112f);  // moves the exponent's bias; normalizes denormals
  const U value = (h & 0x7c00u) == 0x7c00u ? magnitude | 0x7f800000u : scaled;
  return bits<F>(value | ((h & 0x8000u) << 16));
}
template <class F> SH_INLINE uints<F> float_to_half(F x) {
  using U = uints<F>;
  const U u = bits<U>(x), a = u & 0x7fffffffu;
  const U small = bits<U>(bits<F>(a) + 0.5f) - 0x3f000000u;  // below 2^-14: the addition rounds to a denormal half
  const U normal = (a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13;
  const U large = a > 0x7f800000u ? U{} + 0x7e00u : U{} + 0x7c00u;
  const U h = a < 0x38800000u ? small : (a < 0x47800000u ? normal : large);
  return h | ((u >> 16) & 0x8000u);
}

// Halves of a piece, and two pieces as one of twice the lanes. By shuffles where there are any: a copy of part of a
// vector's memory would keep GCC from holding that vector in a register, in the loop before as well.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SH_HAVE_SHUFFLEVECTOR 1
#endif
#endif
template <class V> using half_of = piece<elem<V>, count<V> / 2>;
template <class V> SH_INLINE half_of<V> lower(V v) {
#ifdef SH_HAVE_SHUFFLEVECTOR
  if constexpr (count<V> == 2) return __builtin_shufflevector(v, v, 0);
  else if constexpr (count<V> == 4) return __builtin_shufflevector(v, v, 0, 1);
  else if constexpr (count<V> == 8) return __builtin_shufflevector(v, v, 0, 1, 2, 3);
  else if constexpr (count<V> == 16) return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
  else
#endif
  { half_of<V> r; __builtin_memcpy(&r, &v, sizeof r); return r; }
}
template <class V> SH_INLINE half_of<V> upper(V v) {
#ifdef SH_HAVE_SHUFFLEVECTOR
  if constexpr (count<V> == 2) return __builtin_shufflevector(v, v, 1);
  else if constexpr (count<V> == 4) return __builtin_shufflevector(v, v, 2, 3);
  else if constexpr (count<V> == 8) return __builtin_shufflevector(v, v, 4, 5, 6, 7);
  else if constexpr (count<V> == 16) return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
  else
#endif
  { half_of<V> r; __builtin_memcpy(&r, (const char *)&v + sizeof r, sizeof r); return r; }
}
template <class V> SH_INLINE piece<elem<V>, 2 * count<V>> join(V a, V b) {
  using R = piece<elem<V>, 2 * count<V>>;
#ifdef SH_HAVE_SHUFFLEVECTOR
  if constexpr (count<V> == 1) return __builtin_shufflevector(a, b, 0, 1);
  else if constexpr (count<V> == 2) return __builtin_shufflevector(a, b, 0, 1, 2, 3);
  else if constexpr (count<V> == 4) return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
  else if constexpr (count<V> == 8)
    return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  else
#endif
  {
    R r; __builtin_memcpy(&r, &a, sizeof a); __builtin_memcpy((char *)&r + sizeof a, &b, sizeof b); return r;
  }
}

// Lane conversion between pieces of equal lane count. Two steps where GCC would otherwise go lane by lane.
template <class To, class V> SH_INLINE piece<To, count<V>> convert(V v) {
  using From = elem<V>;
  using R = piece<To, count<V>>;
  constexpr bool narrow_int_from = sizeof(From) < 4, narrow_int_to = sizeof(To) < 4;
  constexpr bool float_from = From(0.5) != From(0), float_to = To(0.5) != To(0);
  if constexpr (sizeof(From) == sizeof(To) && !float_from && !float_to) return bits<R>(v);
  else if constexpr (narrow_int_from && float_to)
    return __builtin_convertvector(__builtin_convertvector(v, piece<int32_t, count<V>>), R);
  else if constexpr (float_from && narrow_int_to)
    return __builtin_convertvector(__builtin_convertvector(v, piece<int32_t, count<V>>), R);
  else return __builtin_convertvector(v, R);
}

}  // namespace native
}  // namespace sh
