// Arithmetic, comparison, logic, selection and horizontal reductions, for plain numbers and for vectors.
// Mixed calls (vector, plain number) work in either order.
#pragma once
#include "shorthaul_core.h"

namespace sh {

// ------------------------------------------------------------------------------------------------ select
template <class T> SH_INLINE T select(bool m, T a, same_t<T> b) { return m ? a : b; }
template <class T, int N> SH_INLINE vec<T, N> select(bool m, vec<T, N> a, vec<T, N> b) { return m ? a : b; }
template <int B, class T, int N> SH_INLINE vec<T, N> select(mask<B, N> m, vec<T, N> a, vec<T, N> b) {
  const auto w = resize<int(sizeof(T))>(m);
  vec<T, N> r;
  SH_EACH((vec<T, N>::K), r.p[k] = w.v.p[k] ? a.p[k] : b.p[k]);
  return r;
}
template <int B, class T, int N> SH_INLINE vec<T, N> select(mask<B, N> m, vec<T, N> a, same_t<T> b) {
  return select(m, a, splat_n<T, N>(b));
}
template <int B, class T, int N> SH_INLINE vec<T, N> select(mask<B, N> m, same_t<T> a, vec<T, N> b) {
  return select(m, splat_n<T, N>(a), b);
}
template <int B, int N, class T> SH_INLINE vec<number<T>, N> select(mask<B, N> m, T a, same_t<T> b) {
  return select(m, splat_n<T, N>(a), splat_n<T, N>(b));
}
template <int B, int A, int C, int N> SH_INLINE mask<B, N> select(mask<B, N> m, mask<A, N> a, mask<C, N> b) {
  const auto x = resize<B>(a);
  const auto y = resize<B>(b);
  mask<B, N> r;
  SH_EACH((vec<typename mask<B, N>::T, N>::K), r.v.p[k] = (m.v.p[k] & x.v.p[k]) | (~m.v.p[k] & y.v.p[k]));
  return r;
}

// ------------------------------------------------------------------------------------------------ arithmetic
#define SH_MIXED(name) \
  template <class T, int N> SH_INLINE auto name(vec<T, N> a, same_t<T> b) { return name(a, splat_n<T, N>(b)); } \
  template <class T, int N> SH_INLINE auto name(same_t<T> a, vec<T, N> b) { return name(splat_n<T, N>(a), b); }

#define SH_BINARY(name, op) \
  template <class T> SH_INLINE number<T> name(T a, same_t<T> b) { return T(a op b); } \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r; SH_EACH((vec<T, N>::K), r.p[k] = a.p[k] op b.p[k]); return r; } \
  SH_MIXED(name)
// The same, for an operation whose integers need care: name_1 on scalars, lane by lane for integers.
#define SH_BINARY_LANES(name, scalar) \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r; for (int j = 0; j < N; ++j) r.set(j, scalar(T(a[j]), T(b[j]))); return r; } \
  SH_MIXED(name)

SH_BINARY(add, +)
SH_BINARY(sub, -)
SH_BINARY(mul, *)
SH_BINARY(band, &)
SH_BINARY(bor, |)
SH_BINARY(bxor, ^)

// Integer division truncates; division by zero gives 0 and MIN / -1 gives MIN instead of a machine trap.
template <class T> SH_INLINE number<T> div(T a, same_t<T> b) {
  if constexpr (is_float<T>) return a / b;
  else if (b == T(0)) return T(0);
  else if (T(-1) < T(0) && b == T(-1)) return T(T(0) - typename native::int_of<sizeof(T)>::utype(a));
  else return T(a / b);
}
template <class T, int N> SH_INLINE vec<T, N> div(vec<T, N> a, vec<T, N> b) {
  vec<T, N> r;
  if constexpr (is_float<T>) { SH_EACH((vec<T, N>::K), r.p[k] = a.p[k] / b.p[k]); }
  else for (int j = 0; j < N; ++j) r.set(j, div(T(a[j]), T(b[j])));
  return r;
}
SH_MIXED(div)

template <class T> SH_INLINE number<T> neg(T a) { return T(-a); }
template <class T, int N> SH_INLINE vec<T, N> neg(vec<T, N> a) {
  SH_EACH((vec<T, N>::K), a.p[k] = -a.p[k]);
  return a;
}
template <class T, int N> SH_INLINE vec<T, N> bnot(vec<T, N> a) {
  SH_EACH((vec<T, N>::K), a.p[k] = ~a.p[k]);
  return a;
}
template <class T> SH_INLINE number<T> bnot(T a) { return T(~a); }

template <class T> SH_INLINE number<T> abs(T a) {
  if constexpr (is_same<T, float>) return __builtin_fabsf(a);
  else if constexpr (is_same<T, double>) return __builtin_fabs(a);
  else return a < T(0) ? T(-a) : a;
}
template <class T, int N> SH_INLINE vec<T, N> abs(vec<T, N> a) {
  if constexpr (is_float<T>) {
    SH_EACH((vec<T, N>::K), using V = typename vec<T, N>::piece; using I = native::ints<V>;
            a.p[k] = (V)((I)a.p[k] & ~(I)native::splat<V>(T(-0.0))));
  } else if constexpr (T(-1) < T(0)) {
    SH_EACH((vec<T, N>::K), a.p[k] = a.p[k] < 0 ? -a.p[k] : a.p[k]);
  }
  return a;
}

// a * b + c, fused where the machine can.
template <class T> SH_INLINE number<T> fma(T a, same_t<T> b, same_t<T> c) { return T(a * b + c); }
template <class T, int N> SH_INLINE vec<T, N> fma(vec<T, N> a, vec<T, N> b, vec<T, N> c) {
  vec<T, N> r;
  SH_EACH((vec<T, N>::K), r.p[k] = a.p[k] * b.p[k] + c.p[k]);
  return r;
}
template <class T, int N> SH_INLINE vec<T, N> fma(vec<T, N> a, same_t<T> b, vec<T, N> c) { return fma(a, splat_n<T, N>(b), c); }
template <class T, int N> SH_INLINE vec<T, N> fma(same_t<T> a, vec<T, N> b, vec<T, N> c) { return fma(splat_n<T, N>(a), b, c); }
template <class T, int N> SH_INLINE vec<T, N> fma(vec<T, N> a, vec<T, N> b, same_t<T> c) { return fma(a, b, splat_n<T, N>(c)); }
template <class T, int N> SH_INLINE vec<T, N> fma(vec<T, N> a, same_t<T> b, same_t<T> c) {
  return fma(a, splat_n<T, N>(b), splat_n<T, N>(c));
}

// min and max give NaN where either operand is NaN (torch.minimum); fmin and fmax give the other operand (torch.fmin).
#define SH_EXTREME(name, op) \
  template <class T> SH_INLINE number<T> name(T a, same_t<T> b) { return (a op b || a != a) ? a : b; } \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r; \
    if constexpr (is_float<T>) { \
      SH_EACH((vec<T, N>::K), const auto t = a.p[k] op b.p[k] ? a.p[k] : b.p[k]; r.p[k] = a.p[k] == a.p[k] ? t : a.p[k]); \
    } else { SH_EACH((vec<T, N>::K), r.p[k] = a.p[k] op b.p[k] ? a.p[k] : b.p[k]); } \
    return r; } \
  SH_MIXED(name) \
  template <class T> SH_INLINE number<T> f##name(T a, same_t<T> b) { return (a op b || b != b) ? a : b; } \
  template <class T, int N> SH_INLINE vec<T, N> f##name(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r; \
    if constexpr (is_float<T>) { \
      SH_EACH((vec<T, N>::K), const auto t = a.p[k] op b.p[k] ? a.p[k] : b.p[k]; r.p[k] = b.p[k] == b.p[k] ? t : a.p[k]); \
    } else { SH_EACH((vec<T, N>::K), r.p[k] = a.p[k] op b.p[k] ? a.p[k] : b.p[k]); } \
    return r; } \
  SH_MIXED(f##name)
SH_EXTREME(min, <)
SH_EXTREME(max, >)

// Shifts as PyTorch's: a count that is negative or not below the width shifts everything out (>> keeps the sign).
template <class T> SH_INLINE number<T> shl(T a, same_t<T> b) {
  using U = typename native::int_of<sizeof(T)>::utype;
  return U(b) >= sizeof(T) * 8 ? T(0) : T(U(U(a) << U(b)));
}
template <class T> SH_INLINE number<T> shr(T a, same_t<T> b) {
  using U = typename native::int_of<sizeof(T)>::utype;
  return U(b) >= sizeof(T) * 8 ? (a < T(0) ? T(-1) : T(0)) : T(a >> b);
}
SH_BINARY_LANES(shl, shl)
SH_BINARY_LANES(shr, shr)

// ------------------------------------------------------------------------------------------------ comparisons
#define SH_COMPARE(name, op) \
  template <class T> SH_INLINE bool name(T a, same_t<T> b) { return a op b; } \
  template <class T, int N> SH_INLINE mask<int(sizeof(T)), N> name(vec<T, N> a, vec<T, N> b) { \
    mask<int(sizeof(T)), N> r; SH_EACH((vec<T, N>::K), r.v.p[k] = (a.p[k] op b.p[k])); return r; } \
  SH_MIXED(name)
SH_COMPARE(eq, ==)
SH_COMPARE(ne, !=)
SH_COMPARE(lt, <)
SH_COMPARE(le, <=)
SH_COMPARE(gt, >)
SH_COMPARE(ge, >=)

template <class T> SH_INLINE bool isnan(T a) { return a != a; }
template <class T, int N> SH_INLINE auto isnan(vec<T, N> a) { return ne(a, a); }
template <class V> SH_INLINE auto isinf(V a) {
  if constexpr (is_same<V, float> || is_same<V, double>) return abs(a) == V(__builtin_inf());
  else if constexpr (is_same<number<typename V::scalar>, float> || is_same<number<typename V::scalar>, double>)
    return eq(abs(a), typename V::scalar(__builtin_inf()));
  else return ne(a, a);
}
template <class V> SH_INLINE auto isfinite(V a) {
  if constexpr (is_same<V, float> || is_same<V, double>) return abs(a) < V(__builtin_inf());
  else if constexpr (is_float<typename V::scalar>) return lt(abs(a), typename V::scalar(__builtin_inf()));
  else return eq(a, a);
}

// ------------------------------------------------------------------------------------------------ logic on conditions
#define SH_LOGIC(name, op, expr) \
  SH_INLINE bool name(bool a, bool b) { return expr; } \
  template <int B, int C, int N> SH_INLINE mask<B, N> name(mask<B, N> a, mask<C, N> c) { \
    const auto b = resize<B>(c); \
    SH_EACH((vec<typename mask<B, N>::T, N>::K), a.v.p[k] = a.v.p[k] op b.v.p[k]); return a; } \
  template <int B, int N> SH_INLINE mask<B, N> name(mask<B, N> a, bool b) { return name(a, splat<bool>(lanes<N>{}, b)); } \
  template <int B, int N> SH_INLINE mask<B, N> name(bool a, mask<B, N> b) { return name(b, a); }
SH_LOGIC(land, &, a && b)
SH_LOGIC(lor, |, a || b)
SH_LOGIC(lxor, ^, a != b)
SH_INLINE bool lnot(bool a) { return !a; }
template <int B, int N> SH_INLINE mask<B, N> lnot(mask<B, N> a) {
  SH_EACH((vec<typename mask<B, N>::T, N>::K), a.v.p[k] = ~a.v.p[k]);
  return a;
}
// Comparisons, extremes and bits of conditions, false below true.
#define SH_CONDITIONS(name, plain, lanewise) \
  SH_INLINE bool name(bool a, bool b) { return plain; } \
  template <int B, int C, int N> SH_INLINE mask<B, N> name(mask<B, N> a, mask<C, N> b) { return lanewise; } \
  template <int B, int N> SH_INLINE mask<B, N> name(mask<B, N> a, bool b) { return name(a, splat<bool>(lanes<N>{}, b)); } \
  template <int B, int N> SH_INLINE mask<B, N> name(bool a, mask<B, N> b) { return resize<B>(name(splat<bool>(lanes<N>{}, a), b)); }
SH_CONDITIONS(eq, a == b, lnot(lxor(a, b)))
SH_CONDITIONS(ne, a != b, lxor(a, b))
SH_CONDITIONS(lt, !a && b, land(lnot(a), b))
SH_CONDITIONS(le, !a || b, lor(lnot(a), b))
SH_CONDITIONS(gt, a && !b, land(a, lnot(b)))
SH_CONDITIONS(ge, a || !b, lor(a, lnot(b)))
SH_CONDITIONS(min, a && b, land(a, b))
SH_CONDITIONS(max, a || b, lor(a, b))
SH_CONDITIONS(band, a && b, land(a, b))
SH_CONDITIONS(bor, a || b, lor(a, b))
SH_CONDITIONS(bxor, a != b, lxor(a, b))
#undef SH_CONDITIONS
SH_INLINE bool bnot(bool a) { return !a; }
template <int B, int N> SH_INLINE mask<B, N> bnot(mask<B, N> a) { return lnot(a); }
template <int B, int C, int N> SH_INLINE mask<B, N> select(mask<B, N> m, mask<C, N> a, bool b) {
  return select(m, a, splat<bool>(lanes<N>{}, b));
}
template <int B, int C, int N> SH_INLINE mask<B, N> select(mask<B, N> m, bool a, mask<C, N> b) {
  return select(m, splat<bool>(lanes<N>{}, a), b);
}

// ------------------------------------------------------------------------------------------------ across lanes
namespace native {
#define SH_ACROSS(name, expr) \
  template <class V> SH_INLINE elem<V> name(V v) { \
    if constexpr (count<V> == 1) return v[0]; \
    else if constexpr (sizeof(V) > 16) { const auto a = lower(v), b = upper(v); return name<half_of<V>>(expr); } \
    else { elem<V> a = v[0]; for (int j = 1; j < count<V>; ++j) { const elem<V> b = v[j]; a = expr; } return a; } }
SH_ACROSS(across_sum, a + b)
SH_ACROSS(across_prod, a * b)
#undef SH_ACROSS
}  // namespace native

// hsum, hprod, hmin, hmax: combine the lanes; plain numbers come back unchanged. min and max propagate NaN.
#define SH_HORIZONTAL(name, combine) \
  template <class T> SH_INLINE number<T> name(T a) { return a; } \
  template <class T, int N> SH_INLINE T name(vec<T, N> a) { \
    if constexpr (vec<T, N>::K > 1) { \
      vec<T, N / vec<T, N>::K> r; r.p[0] = a.p[0]; \
      for (int q = 1; q < vec<T, N>::K; ++q) { vec<T, N / vec<T, N>::K> s; s.p[0] = a.p[q]; r = combine(r, s); } \
      return name(r); \
    } else if constexpr (N > 1) { \
      vec<T, N / 2> x, y; x.p[0] = native::lower(a.p[0]); y.p[0] = native::upper(a.p[0]); \
      return name(combine(x, y)); \
    } else return a.p[0][0]; }
SH_HORIZONTAL(hsum, add)
// In float64: rounded once, as it costs a conversion only.
template <int N> SH_INLINE float hsum(vec<float, N> a) { return float(hsum(cast<double>(a))); }
SH_HORIZONTAL(hprod, mul)
SH_HORIZONTAL(hmin, min)
SH_HORIZONTAL(hmax, max)
// Count, mean and squared deviations over all lanes from each lane's count and its sums of differences from a shift of its own, around
// the shift of the first lane: in float64, whose rounding does not show, and with one division for all lanes.
template <class T> struct moments { T count, mean, m2; };
template <class T, int N> SH_INLINE moments<T> hmoments(vec<T, N> count, vec<T, N> shift, vec<double, N> total, vec<double, N> squares) {
  const auto c = cast<double>(count);
  const double first = double(shift[0]), n = hsum(c);
  const auto from = select(gt(c, splat_n<double, N>(0)), sub(cast<double>(shift), splat_n<double, N>(first)), 0.0);  // 0 in empty lanes
  const double mean = hsum(add(mul(c, from), total)) / (n > 1 ? n : 1);
  const auto to = sub(from, splat_n<double, N>(mean));
  const double m2 = hsum(add(squares, mul(to, add(add(total, total), mul(c, to)))));
  return {T(n), T(first + mean), T(m2 < 0 ? 0 : m2)};
}
SH_INLINE bool hany(bool a) { return a; }
SH_INLINE bool hall(bool a) { return a; }
template <int B, int N> SH_INLINE bool hany(mask<B, N> m) {
  uint64_t any = 0;
  SH_EACH((vec<typename mask<B, N>::T, N>::K), { using V = typename vec<typename mask<B, N>::T, N>::piece;
    uint64_t words[sizeof(V) / 8 ? sizeof(V) / 8 : 1] = {}; __builtin_memcpy(words, &m.v.p[k], sizeof(V));
    for (uint64_t w : words) any |= w; });
  return any != 0;
}
template <int B, int N> SH_INLINE bool hall(mask<B, N> m) { return !hany(lnot(m)); }

// The lanes beyond a tail become `identity`, so that a reduction over lanes ignores them.
template <class V, int N, class T> SH_INLINE V keep(lanes<N>, V x, T) { return x; }
template <class T, int N> SH_INLINE vec<T, N> keep(tail<N> tag, vec<T, N> x, same_t<T> identity) {
  return select(active(tag), x, identity);
}
template <int B, int N> SH_INLINE mask<B, N> keep(tail<N> tag, mask<B, N> x, bool identity) {
  const auto in = resize<B>(active(tag));
  return identity ? lor(x, lnot(in)) : land(x, in);
}

}  // namespace sh

// Python's floor division and modulus, for index arithmetic in generated code. The divisor is not zero.
static inline int64_t sh_floordiv(int64_t a, int64_t b) {
  const int64_t q = a / b;
  return q - ((a % b != 0) & ((a < 0) != (b < 0)));
}
static inline int64_t sh_mod(int64_t a, int64_t b) {
  const int64_t r = a % b;
  return r + ((r != 0) & ((r < 0) != (b < 0)) ? b : 0);
}
