// Vectors of N lanes for generated kernels: types, lane tags, casts, memory access.
//
// A kernel body is written once as a generic lambda over a *lane tag* L and is instantiated for
//     lanes<W>   W lanes at once                  values are vec<T, W>, conditions mask<B, W>
//     tail<W>    the last n < W lanes at once     the same types; load fills zeros, store writes n lanes
//     lanes<1>   one element                      values are plain T, conditions are bool
// so every function exists for scalars and for vectors, and gives bit-identical results for both (so results do not
// depend on alignment, chunking or thread count). W is 16 with AVX-512 and 8 otherwise, whatever the element types:
// a vec<double, 16> is two registers, and casts stay lane-wise.
//
// bool is mask in vector form: all ones or zeros per lane, B bytes wide as in the comparison it came from; operations
// convert between widths where they must. bfloat16 and float16 are storage: load, cast<float>, compute, cast back.
#pragma once
#include "shorthaul_native.h"

namespace sh {

template <class T> struct storage_of { using type = T; };
template <> struct storage_of<bfloat16> { using type = uint16_t; };
template <> struct storage_of<float16> { using type = uint16_t; };

template <class T, int N> struct vec {
  using scalar = T;
  using stored = typename storage_of<T>::type;
  static constexpr int size = N;
  static constexpr int K = N * int(sizeof(T)) > register_bytes ? N * int(sizeof(T)) / register_bytes : 1;  // registers
  static constexpr int M = N / K;                                                                          // lanes each
  using piece = native::piece<stored, M>;
  piece p[K];
  SH_METHOD stored operator[](int i) const { return p[i / M][i % M]; }
  SH_METHOD void set(int i, stored x) { p[i / M][i % M] = x; }
};

// B bytes per lane, 0 or -1.
template <int B, int N> struct mask;
template <int To, int B, int N> inline mask<To, N> resize(mask<B, N> m);
template <int B, int N> struct mask {
  using T = typename native::int_of<B>::type;
  vec<T, N> v;
  SH_METHOD bool operator[](int i) const { return v[i] != 0; }
  // an accumulator of conditions takes what was compared in wider lanes
  template <int C> SH_METHOD mask& operator=(mask<C, N> m) { return *this = resize<B>(m); }
};

template <int N> struct lanes { static constexpr int width = N; SH_METHOD constexpr int count() const { return N; } };
template <int N> struct tail { static constexpr int width = N; int n; SH_METHOD int count() const { return n; } };

template <class A, class B> constexpr bool is_same = false;
template <class A> constexpr bool is_same<A, A> = true;
template <class T> struct same { using type = T; };
template <class T> using same_t = typename same<T>::type;  // not deduced: lets a plain number meet a vector

// number<T> is T for the arithmetic types and an error in overload resolution otherwise.
template <class T> struct number_of {};
#define SH_NUMBER(T) template <> struct number_of<T> { using type = T; };
SH_NUMBER(float) SH_NUMBER(double)
SH_NUMBER(signed char) SH_NUMBER(short) SH_NUMBER(int) SH_NUMBER(long) SH_NUMBER(long long)
SH_NUMBER(unsigned char) SH_NUMBER(unsigned short) SH_NUMBER(unsigned) SH_NUMBER(unsigned long)
SH_NUMBER(unsigned long long)
#undef SH_NUMBER
template <class T> using number = typename number_of<T>::type;
template <class T> constexpr bool is_float = is_same<T, float> || is_same<T, double>;

// Runs a statement for each register k of a vector (1, 2, 4 or 8 of them) without leaving a loop behind.
#define SH_EACH(K, ...) \
  { enum { k = 0 }; __VA_ARGS__; } \
  if constexpr ((K) > 1) { enum { k = 1 }; __VA_ARGS__; } \
  if constexpr ((K) > 2) { { enum { k = 2 }; __VA_ARGS__; } { enum { k = 3 }; __VA_ARGS__; } } \
  if constexpr ((K) > 4) { \
    { enum { k = 4 }; __VA_ARGS__; } { enum { k = 5 }; __VA_ARGS__; } \
    { enum { k = 6 }; __VA_ARGS__; } { enum { k = 7 }; __VA_ARGS__; } }

// ------------------------------------------------------------------------------------------------ constants, iota
template <class T, int N> SH_INLINE vec<T, N> splat_n(T x) {
  vec<T, N> r;
  SH_EACH((vec<T, N>::K), r.p[k] = (native::splat<typename vec<T, N>::piece>(x)));
  return r;
}
template <class T, class L> SH_INLINE auto splat(L, same_t<T> x) {
  if constexpr (L::width == 1) return x;
  else if constexpr (is_same<T, bool>) {
    return mask<1, L::width>{splat_n<int8_t, L::width>(x ? -1 : 0)};
  } else return splat_n<T, L::width>(x);
}

// base + lane * stride, as int64 lanes.
template <class L> SH_INLINE auto iota(L, int64_t base, int64_t stride = 1) {
  if constexpr (L::width == 1) return base;
  else {
    constexpr int N = L::width;
    using V = vec<int64_t, N>;
    static const int64_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    static_assert(N <= 16, "at most 16 lanes");
    V r;
    SH_EACH(V::K, r.p[k] = native::load<typename V::piece>(numbers + k * V::M) * stride + base);
    return r;
  }
}

// ------------------------------------------------------------------------------------------------ cast
template <class To, int N, class From> SH_INLINE vec<To, N> convert_vec(vec<From, N> x) {
  using A = vec<From, N>;
  using R = vec<To, N>;
  R r;
  if constexpr (A::K == R::K) {
    SH_EACH(A::K, r.p[k] = native::convert<To>(x.p[k]));
  } else if constexpr (R::K == 2 * A::K) {
    SH_EACH(A::K, r.p[2 * k] = native::convert<To>(native::lower(x.p[k])); r.p[2 * k + 1] = native::convert<To>(native::upper(x.p[k])));
  } else if constexpr (A::K == 2 * R::K) {
    SH_EACH(R::K, r.p[k] = native::join(native::convert<To>(x.p[2 * k]), native::convert<To>(x.p[2 * k + 1])));
  } else if constexpr (R::K > A::K) {
    using Mid = typename native::int_of<(sizeof(To) > 2 ? sizeof(To) / 2 : sizeof(To))>::type;
    if constexpr (is_float<To>) return convert_vec<To, N>(convert_vec<int32_t, N>(x));
    else return convert_vec<To, N>(convert_vec<Mid, N>(x));
  } else {
    using Mid = typename native::int_of<(sizeof(From) > 2 ? sizeof(From) / 2 : sizeof(From))>::type;
    if constexpr (is_float<From>) return convert_vec<To, N>(convert_vec<int32_t, N>(x));
    else return convert_vec<To, N>(convert_vec<Mid, N>(x));
  }
  return r;
}

template <int To, int B, int N> SH_INLINE mask<To, N> resize(mask<B, N> m) {
  if constexpr (To == B) return m;
  else return {convert_vec<typename native::int_of<To>::type, N>(m.v)};
}
template <int B, int N> SH_INLINE mask<B, N> to_mask(mask<B, N> m) { return m; }

template <class To, class From> SH_INLINE To bit_cast(From x) {
  static_assert(sizeof(To) == sizeof(From), "bit cast between different sizes");
  To r; __builtin_memcpy(&r, &x, sizeof r); return r;
}

// Round to nearest even, NaN kept (as a quiet NaN), by integer arithmetic.
SH_INLINE bfloat16 round_bfloat16(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40u)};
  return {uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

template <int N> SH_INLINE vec<bfloat16, N> round_bfloat16(vec<float, N> x) {
  vec<uint32_t, N> r;
  SH_EACH((vec<float, N>::K), using P = typename vec<uint32_t, N>::piece; P u = (P)x.p[k];
          P rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16; P quiet = (u >> 16) | 0x40u;
          r.p[k] = (u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
  const vec<uint16_t, N> h = convert_vec<uint16_t, N>(r);
  vec<bfloat16, N> out;
  SH_EACH((vec<bfloat16, N>::K), out.p[k] = h.p[k]);
  return out;
}
template <class To, class T, int N> SH_INLINE vec<To, N> same_bits(vec<T, N> x) {  // equal element sizes
  vec<To, N> r;
  SH_EACH((vec<To, N>::K), r.p[k] = (typename vec<To, N>::piece)x.p[k]);
  return r;
}

// cast<To>(x) with PyTorch's conversions: float to integer truncates, anything to bool asks for nonzero.
template <class To, class From> SH_INLINE To cast(From x) {
  if constexpr (is_same<To, From>) return x;
  else if constexpr (is_same<From, bfloat16>) return cast<To>(bit_cast<float>(uint32_t(x.bits) << 16));
  else if constexpr (is_same<From, float16>) {
    return cast<To>(native::half_to_float<native::piece<float, 4>>(native::piece<uint32_t, 4>{} + x.bits)[0]);
  }
  else if constexpr (is_same<To, bfloat16>) return round_bfloat16(float(x));
  else if constexpr (is_same<To, float16>) {
    return {uint16_t(native::float_to_half(native::splat<native::piece<float, 4>>(float(x)))[0])};
  }
  else if constexpr (is_same<To, bool>) return x != From(0);
  else if constexpr (is_same<From, bool>) return x ? To(1) : To(0);
  else if constexpr (is_float<From> && !is_float<To> && sizeof(To) < 4) return To(int32_t(x));
  else if constexpr (is_float<From> && is_same<To, uint32_t>) return To(int64_t(x));
  else return To(x);
}
template <class To, int B, int N> SH_INLINE auto cast(mask<B, N> m) {
  if constexpr (is_same<To, bool>) return m;
  else if constexpr (is_same<To, bfloat16> || is_same<To, float16>) return cast<To>(cast<float>(m));
  else {
    const auto w = resize<int(sizeof(To))>(m);
    vec<To, N> r;
    using V = typename vec<To, N>::piece;
    SH_EACH((vec<To, N>::K), r.p[k] = w.v.p[k] ? native::splat<V>(To(1)) : V{});
    return r;
  }
}
template <class To, class T, int N> SH_INLINE auto cast(vec<T, N> x) {
  if constexpr (is_same<To, T>) return x;
  else if constexpr (is_same<T, bfloat16>) {
    vec<uint32_t, N> wide = convert_vec<uint32_t, N>(same_bits<uint16_t>(x));
    SH_EACH((vec<uint32_t, N>::K), wide.p[k] <<= 16);
    return cast<To>(same_bits<float>(wide));
  } else if constexpr (is_same<T, float16>) {
    const vec<uint32_t, N> wide = convert_vec<uint32_t, N>(same_bits<uint16_t>(x));
    vec<float, N> r;
    SH_EACH((vec<float, N>::K), r.p[k] = native::half_to_float<typename vec<float, N>::piece>(wide.p[k]));
    return cast<To>(r);
  } else if constexpr (is_same<To, bfloat16>) {
    return round_bfloat16(cast<float>(x));
  } else if constexpr (is_same<To, float16>) {
    const vec<float, N> f = cast<float>(x);
    vec<uint32_t, N> wide;
    SH_EACH((vec<float, N>::K), wide.p[k] = native::float_to_half(f.p[k]));
    return same_bits<float16>(convert_vec<uint16_t, N>(wide));
  } else if constexpr (is_same<To, bool>) {
    mask<int(sizeof(T)), N> m;
    SH_EACH((vec<T, N>::K), m.v.p[k] = (x.p[k] != 0));
    return m;
  } else return convert_vec<To, N>(x);
}

// ------------------------------------------------------------------------------------------------ load and store
template <class T, class L> SH_INLINE auto load(L tag, const T *p) {
  constexpr int N = L::width;
  if constexpr (N == 1) return *p;
  else if constexpr (is_same<T, bool>) {
    return cast<bool>(load(tag, (const int8_t *)p));
  } else {
    using V = vec<T, N>;
    V r;
    if constexpr (is_same<L, lanes<N>>) {
      SH_EACH(V::K, r.p[k] = native::load<typename V::piece>((const typename V::stored *)p + k * V::M));
    } else {
      SH_EACH(V::K, r.p[k] = native::load_first<typename V::piece>((const typename V::stored *)p + k * V::M, tag.n - k * V::M));
    }
    return r;
  }
}
template <class L, class T> SH_INLINE void store(L, T *p, same_t<T> x) { *p = x; }
template <class T, int N> SH_INLINE void store(lanes<N>, T *p, vec<T, N> x) {
  using V = vec<T, N>;
  SH_EACH(V::K, native::store((typename V::stored *)p + k * V::M, x.p[k]));
}
template <class T, int N> SH_INLINE void store(tail<N> tag, T *p, vec<T, N> x) {
  using V = vec<T, N>;
  SH_EACH(V::K, native::store_first((typename V::stored *)p + k * V::M, x.p[k], tag.n - k * V::M));
}
template <class L, int B, int N> SH_INLINE void store(L tag, bool *p, mask<B, N> m) {
  store(tag, (int8_t *)p, cast<int8_t>(m));
}

// One element per lane at p[lane * stride].
template <class T, class L> SH_INLINE auto load_strided(L tag, const T *p, int64_t stride) {
  constexpr int N = L::width;
  if constexpr (N == 1) return *p;
  else if constexpr (is_same<T, bool>) return cast<bool>(load_strided(tag, (const int8_t *)p, stride));
  else {
    using V = vec<T, N>;
    V r;
    const auto *q = (const typename V::stored *)p;
    _Pragma("GCC unroll 16") for (int j = 0; j < N; ++j)
      r.set(j, is_same<L, lanes<N>> || j < tag.count() ? q[j * stride] : typename V::stored(0));
    return r;
  }
}
template <class L, class T, class V> SH_INLINE void store_strided(L tag, T *p, int64_t stride, V x) {
  if constexpr (L::width == 1) *p = x;
  else if constexpr (is_same<T, bool>) store_strided(tag, (int8_t *)p, stride, cast<int8_t>(x));
  else {
    _Pragma("GCC unroll 16") for (int j = 0; j < L::width; ++j)
      if (is_same<L, lanes<L::width>> || j < tag.count()) ((typename V::stored *)p)[j * stride] = x[j];
  }
}

// p[index[lane]]; the lanes beyond a tail are not read. The index is a vec of int32 or int64 (or one, for lanes<1>).
template <class T, class L, class I> SH_INLINE auto gather(L tag, const T *p, I index) {
  constexpr int N = L::width;
  if constexpr (N == 1) return p[index];
  else if constexpr (is_same<T, bool>) return cast<bool>(gather(tag, (const int8_t *)p, index));
  else {
    using V = vec<T, N>;
    V r;
    const auto *q = (const typename V::stored *)p;
    _Pragma("GCC unroll 16") for (int j = 0; j < N; ++j)
      r.set(j, is_same<L, lanes<N>> || j < tag.count() ? q[index[j]] : typename V::stored(0));
    return r;
  }
}
// p[index[lane]] = x[lane], in lane order, so the last of equal indices wins.
template <class T, class L, class I, class V> SH_INLINE void scatter(L tag, T *p, I index, V x) {
  if constexpr (L::width == 1) p[index] = x;
  else if constexpr (is_same<T, bool>) scatter(tag, (int8_t *)p, index, cast<int8_t>(x));
  else for (int j = 0; j < tag.count(); ++j) ((typename V::stored *)p)[index[j]] = x[j];
}
// p[index[lane]] += x[lane], in lane order; equal indices all count. Not for concurrent writers.
template <class T, class L, class I, class V> SH_INLINE void scatter_add(L tag, T *p, I index, V x) {
  if constexpr (L::width == 1) p[index] = T(p[index] + x);
  else for (int j = 0; j < tag.count(); ++j) p[index[j]] = T(p[index[j]] + x[j]);
}
// *p += x, safe between threads.
template <class T> SH_INLINE void atomic_add(T *p, same_t<T> x) {
  if constexpr (is_float<T>) {
    T old; __atomic_load(p, &old, __ATOMIC_RELAXED);
    T next = old + x;
    while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) next = old + x;
  } else __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
template <class T, class L, class I, class V> SH_INLINE void atomic_scatter_add(L tag, T *p, I index, V x) {
  if constexpr (L::width == 1) atomic_add(p + index, x);
  else for (int j = 0; j < tag.count(); ++j) atomic_add(p + index[j], x[j]);
}

// The lanes that a tail stands for; and a condition cut to the lanes that a tag stands for.
template <int N> SH_INLINE mask<4, N> active(tail<N> tag) {
  using V = vec<int32_t, N>;
  static const int32_t numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  mask<4, N> m;
  SH_EACH(V::K, m.v.p[k] = native::load<typename V::piece>(numbers + k * V::M) < native::splat<typename V::piece>(tag.n));
  return m;
}
template <class C, int N> SH_INLINE C only_active(lanes<N>, C condition) { return condition; }
template <int B, int N> SH_INLINE mask<B, N> only_active(tail<N> tag, mask<B, N> m) {
  const auto cut = resize<B>(active(tag));
  SH_EACH((vec<typename mask<B, N>::T, N>::K), m.v.p[k] &= cut.v.p[k]);
  return m;
}

// Guarded access: where the condition is false nothing is read (the value is `fill`) or written.
template <class T, class L, class C> SH_INLINE auto load_if(L tag, C condition, const T *p, same_t<T> fill) {
  constexpr int N = L::width;
  if constexpr (N == 1) return condition ? *p : fill;
  else if constexpr (is_same<T, bool>) return cast<bool>(load_if(tag, condition, (const int8_t *)p, int8_t(fill)));
  else {
    using V = vec<T, N>;
    const auto m = resize<int(sizeof(T))>(only_active(tag, condition));
    V r;
    SH_EACH(V::K, r.p[k] = native::load_where<typename V::piece>(
        m.v.p[k], (const typename V::stored *)p + k * V::M, native::splat<typename V::piece>(bit_cast<typename V::stored>(fill))));
    return r;
  }
}
template <class T, class L, class C, class I>
SH_INLINE auto gather_if(L tag, C condition, const T *p, I index, same_t<T> fill) {
  constexpr int N = L::width;
  if constexpr (N == 1) return condition ? p[index] : fill;
  else if constexpr (is_same<T, bool>) return cast<bool>(gather_if(tag, condition, (const int8_t *)p, index, int8_t(fill)));
  else {
    using V = vec<T, N>;
    const auto *q = (const typename V::stored *)p;
    const auto f = bit_cast<typename V::stored>(fill);
    V r;
    for (int j = 0; j < N; ++j) r.set(j, j < tag.count() && condition[j] ? q[index[j]] : f);
    return r;
  }
}
template <class T, class L, class C, class V> SH_INLINE void store_if(L tag, C condition, T *p, V x) {
  if constexpr (L::width == 1) { if (condition) *p = x; }
  else if constexpr (is_same<T, bool>) store_if(tag, condition, (int8_t *)p, cast<int8_t>(x));
  else {
    const auto m = resize<int(sizeof(T))>(only_active(tag, condition));
    SH_EACH(V::K, native::store_where<typename V::piece>(m.v.p[k], (typename V::stored *)p + k * V::M, x.p[k]));
  }
}
template <class T, class L, class C, class I, class V>
SH_INLINE void scatter_if(L tag, C condition, T *p, I index, V x) {
  if constexpr (L::width == 1) { if (condition) p[index] = x; }
  else if constexpr (is_same<T, bool>) scatter_if(tag, condition, (int8_t *)p, index, cast<int8_t>(x));
  else for (int j = 0; j < tag.count(); ++j) if (condition[j]) ((typename V::stored *)p)[index[j]] = x[j];
}

// Calls body(tag, i) over [begin, end): full vectors, then one masked vector for the rest.
template <class F> SH_INLINE void for_lanes(int64_t begin, int64_t end, F &&body) {
  int64_t i = begin;
  for (; i + W <= end; i += W) body(lanes<W>{}, i);
  if (i < end) body(tail<W>{int(end - i)}, i);
}
// The same with single elements for the rest: for bodies that a masked lane must not run.
template <class F> SH_INLINE void for_lanes_scalar_tail(int64_t begin, int64_t end, F &&body) {
  int64_t i = begin;
  for (; i + W <= end; i += W) body(lanes<W>{}, i);
  for (; i < end; ++i) body(lanes<1>{}, i);
}

}  // namespace sh
