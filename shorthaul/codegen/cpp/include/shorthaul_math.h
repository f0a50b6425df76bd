// Elementary functions.
//
// exp expm1 log log1p log2 log10 tanh sigmoid erf sin cos are vectorized: argument reduction and a minimax polynomial
// (own Remez fits; the reductions are the classical ones of Cody & Waite, and of fdlibm for the double logarithm),
// within 2 units in the last place, with denormals, infinities and NaN right. The rest calls the C library lane by lane.
// The same code serves vectors and single numbers, so both give the same bits.
#pragma once
#include "shorthaul_ops.h"

namespace sh {
namespace native {

template <class V> constexpr bool is_f32 = sizeof(elem<V>) == 4;

// c0 + c1 x + c2 x^2 + ...
template <class V> SH_INLINE V poly(V, elem<V> c0) { return splat<V>(c0); }
template <class V, class... C> SH_INLINE V poly(V x, elem<V> c0, C... rest) {
  return fma(x, poly<V>(x, rest...), splat<V>(c0));
}
template <class V> SH_INLINE V sign_bit() { return splat<V>(elem<V>(-0.0)); }
template <class V> SH_INLINE V fabs(V x) { return bits<V>(bits<ints<V>>(x) & ~bits<ints<V>>(sign_bit<V>())); }
template <class V> SH_INLINE V copysign(V magnitude, V sign) {
  const ints<V> m = bits<ints<V>>(sign_bit<V>());
  return bits<V>((bits<ints<V>>(magnitude) & ~m) | (bits<ints<V>>(sign) & m));
}
template <class V> SH_INLINE bool any(V v) {
  if constexpr (sizeof(V) > 16) return any(lower(v) | upper(v));
  else if constexpr (sizeof(V) == 16) { const auto w = bits<piece<int64_t, 2>>(v); return (w[0] | w[1]) != 0; }
  else { bool r = false; for (int j = 0; j < count<V>; ++j) r |= v[j] != 0; return r; }
}

// Adding 1.5 * 2^(mantissa bits) rounds to a whole number, which then stands in the low bits of the sum.
template <class V> constexpr elem<V> magic = is_f32<V> ? elem<V>(12582912.0) : elem<V>(6755399441055744.0);
template <class V> SH_INLINE ints<V> low_bits(V t) { return bits<ints<V>>(t) - bits<ints<V>>(splat<V>(magic<V>)); }
template <class V> SH_INLINE V to_float(ints<V> n) { return bits<V>(n + bits<ints<V>>(splat<V>(magic<V>))) - magic<V>; }
template <class V> SH_INLINE V power_of_two(ints<V> n) { return bits<V>((n + (is_f32<V> ? 127 : 1023)) << (is_f32<V> ? 23 : 52)); }

// ------------------------------------------------------------------------------------------------ exponentials
// x = n ln 2 + r with |r| <= ln 2 / 2; returns exp(r) - 1.
template <class V> SH_INLINE V exp_reduced(V x, V &n, ints<V> &n_bits) {
  using T = elem<V>;
  const V t = fma(x, splat<V>(T(0x1.71547652b82fep+0)), splat<V>(magic<V>));
  n_bits = low_bits<V>(t);
  n = t - magic<V>;
  V q;
  if constexpr (is_f32<V>) {
    V r = fma(n, splat<V>(-0x1.62e4p-1f), x);
    r = fma(n, splat<V>(-0x1.7f7d1cf8p-20f), r);
    q = poly<V>(r, 0.5000000027f, 0.1666657662f, 0.04166637412f, 0.008363237886f, 0.00139412156f);
    return fma(r * r, q, r);
  } else {
    V r = fma(n, splat<V>(-0x1.62e42fefap-1), x);
    r = fma(n, splat<V>(-0x1.cf79abc9e3b3ap-40), r);
    q = poly<V>(r, 0.5, 0.16666666666666671031, 0.04166666666666668395, 0.0083333333333260819869,
                0.0013888888888874293822, 0.00019841269875005668785, 0.000024801587347587178334,
                2.7557255166245234637e-6, 2.7557252673292368162e-7, 2.5105314116534943407e-8, 2.0921670179120710516e-9);
    return fma(r * r, q, r);
  }
}
// Keeps NaN.
template <class V> SH_INLINE V clamp(V x, elem<V> lo, elem<V> hi) {
  x = x < lo ? splat<V>(lo) : x;
  return x > hi ? splat<V>(hi) : x;
}
template <class V> SH_INLINE V exp_in_range(V x) {
  V n; ints<V> n_bits;
  const V p = exp_reduced<V>(x, n, n_bits) + elem<V>(1);
  return scale_by(p, n, n_bits);
}
template <class V> SH_INLINE V exp(V x) { return exp_in_range<V>(clamp<V>(x, is_f32<V> ? -105 : -750, is_f32<V> ? 89 : 710)); }

// 2 (2^(n-1) (exp(r) - 1) + (2^(n-1) - 1/2)): no cancellation, and no overflow before the result overflows.
template <class V> SH_INLINE V expm1_in_range(V x) {
  V n; ints<V> n_bits;
  const V q = exp_reduced<V>(x, n, n_bits);
  const V s = power_of_two<V>(n_bits - 1);
  const V y = fma(s, q, s - elem<V>(0.5));
  return y + y;
}
template <class V> SH_INLINE V expm1(V x) {
  const V y = expm1_in_range<V>(clamp<V>(x, is_f32<V> ? -30 : -60, is_f32<V> ? 89 : 710));
  return fabs(x) < elem<V>(1e-17) ? x : y;  // keeps -0.0 and denormals
}
// Near zero an odd polynomial; beyond, 1 - 2 / (exp(2|x|) + 1).
template <class V> SH_INLINE V tanh(V x) {
  using T = elem<V>;
  const V a = clamp<V>(fabs(x), 0, is_f32<V> ? 10 : 22), z = a * a;
  V q;
  if constexpr (is_f32<V>) {
    q = poly<V>(z, -0.3333333318f, 0.1333330496f, -0.05395954232f, 0.02177092141f, -0.00834974494f, 0.002298628679f);
  } else {
    q = poly<V>(z, -0.3333333333333333332, 0.13333333333333321473, -0.053968253968236761608, 0.021869488535173940257,
                    -0.008863235500798167163, 0.0035921275219840335297, -0.0014558285315461451982,
                    0.00058998260995423774557, -0.00023889264082950790437, 0.000096049580597691532589,
                    -0.00003709537730117470476, 0.000012223777274124786346, -2.4447023696139877227e-6);
  }
  const V near = fma(a * z, q, a);
  const V far = T(1) - T(2) / (expm1_in_range<V>(a + a) + T(2));
  return copysign<V>(a < T(0.625) ? near : far, x);
}
// float: with exp(-x) = p 2^n, 2^-n / (2^-n + p): nothing overflows on the way. double: 1 / (1 + exp(-|x|)), or exp(-|x|) over
// the same denominator; the rounding errors of the sum and of the quotient are put back in one correction.
template <class V> SH_INLINE V sigmoid(V x) {
  using T = elem<V>;
  if constexpr (is_f32<V>) {
    V n; ints<V> n_bits;
    const V p = exp_reduced<V>(clamp<V>(-x, -87, 105), n, n_bits) + T(1);
    const V s = scale_by(splat<V>(T(1)), -n, -n_bits);
    return s / (s + p);
  }
  const V a = fabs(x);
  const V e = exp_in_range<V>(-(a > T(is_f32<V> ? 105 : 750) ? splat<V>(T(is_f32<V> ? 105 : 750)) : a));
  const V one = splat<V>(T(1)), d = e + T(1), lost = e - (d - T(1));
  const V numerator = x >= T(0) ? one : e;
  const V y = numerator / d;
  const V rest = fma(-y, lost, fma(-y, d, numerator));
  return fma(rest, x >= T(0) ? y : one - y, y);
}

// ------------------------------------------------------------------------------------------------ logarithms
// log(1 + f) + e ln 2 for 1 + f in [sqrt(1/2), sqrt(2)].
template <class V> SH_INLINE V log_reduced(V f, V e) {
  using T = elem<V>;
  const V f2 = f * f;
  if constexpr (is_f32<V>) {
    V y = poly<V>(f, 0.3333332621f, -0.24999985f, 0.2000128499f, -0.1666886759f, 0.142356757f, -0.1239855131f,
                0.1176930844f, -0.1167753571f, 0.07006710706f) * (f * f2);
    y = fma(e, splat<V>(0x1.7f7d1cf8p-20f), y);
    y = fma(f2, splat<V>(-0.5f), y);
    return fma(e, splat<V>(0x1.62e4p-1f), f + y);
  } else {
    const V s = f / (f + T(2)), z = s * s, half = f2 * T(0.5);
    const V r = z * poly<V>(z, 0.66666666666666989289, 0.39999999999611893923, 0.28571428703865748917, 0.22222202139513228185,
                0.18183394164130738309, 0.15318096770427595756, 0.14757979066914229339);
    const V small = fma(s, half + r, e * T(0x1.cf79abc9e3b3ap-40));
    return fma(e, splat<V>(0x1.62e42fefap-1), f - (half - small));
  }
}
// x = 2^e (1 + f); denormals are scaled up first.
template <class V> SH_INLINE void split_exponent(V x, V &f, V &e) {
  using T = elem<V>;
  constexpr int mantissa = is_f32<V> ? 23 : 52;
  constexpr T lift = is_f32<V> ? T(0x1p24) : T(0x1p54);
  const auto small = x < T(is_f32<V> ? 0x1p-126 : 0x1p-1022);
  const ints<V> b = bits<ints<V>>(small ? x * lift : x);
  const ints<V> n = (b - bits<ints<V>>(splat<V>(T(0x1.6a09e667f3bcdp-1)))) >> mantissa;
  f = bits<V>(b - (n << mantissa)) - T(1);
  e = to_float<V>(n) - (small ? splat<V>(is_f32<V> ? T(24) : T(54)) : V{});
}
// The result of a logarithm of x outside (0, inf): -inf at 0, NaN below, inf and NaN unchanged.
template <class V> SH_INLINE V log_domain(V x, V y) {
  using T = elem<V>;
  const V outside = x == T(0) ? splat<V>(T(-__builtin_inf())) : splat<V>(T(__builtin_nan("")));
  y = x < T(__builtin_inf()) ? y : x;
  return x > T(0) ? y : outside;
}
template <class V> SH_INLINE V log(V x) {
  V f, e;
  split_exponent<V>(x, f, e);
  return log_domain<V>(x, log_reduced<V>(f, e));
}
template <class V> SH_INLINE V log2(V x) {
  using T = elem<V>;
  V f, e;
  split_exponent<V>(x, f, e);
  const V y = log_reduced<V>(f, V{});
  const V hi = splat<V>(is_f32<V> ? T(0x1.715476p+0) : T(0x1.71547652b82fep+0));
  const V lo = splat<V>(is_f32<V> ? T(0x1.4ae0bf85ddf44p-26) : T(0x1.777d0ffda0d24p-56));
  return log_domain<V>(x, fma(y, hi, fma(y, lo, e)));
}
template <class V> SH_INLINE V log10(V x) {
  using T = elem<V>;
  V f, e;
  split_exponent<V>(x, f, e);
  const V y = log_reduced<V>(f, V{});
  const V hi = splat<V>(is_f32<V> ? T(0x1.bcb7bp-2) : T(0x1.bcb7b1526e50ep-2));
  const V lo = splat<V>(is_f32<V> ? T(0x1.526e50e32a6abp-26) : T(0x1.95355baaafad3p-57));
  const V e_hi = splat<V>(is_f32<V> ? T(0x1.344134p-2) : T(0x1.34413509f79fep-2));
  const V e_lo = splat<V>(is_f32<V> ? T(0x1.09f79fef311f1p-26) : T(0x1.e623e2566b02ep-55));
  return log_domain<V>(x, fma(e, e_hi, fma(y, hi, fma(y, lo, e * e_lo))));
}
template <class V> SH_INLINE V log1p(V x) {
  using T = elem<V>;
  const V u = x + T(1);
  const V lost = x < T(1) ? x - (u - T(1)) : T(1) - (u - x);  // x + 1 = u + lost exactly
  V f, e;
  split_exponent<V>(u, f, e);
  const V corrected = fma(lost, power_of_two<V>(-low_bits<V>(e + magic<V>)), f);
  f = x < (is_f32<V> ? T(0x1p40) : T(0x1p80)) ? corrected : f;
  const V y = log_domain<V>(u, log_reduced<V>(f, e));
  return fabs(x) < (is_f32<V> ? T(0x1p-25) : T(0x1p-54)) ? x : y;
}

// ------------------------------------------------------------------------------------------------ error function
// Odd polynomial near zero; beyond, 1 - exp(g(|x|)) with g a fit of log(erfc), whose error only counts times erfc.
template <class V> SH_INLINE V erf(V x) {
  using T = elem<V>;
  const V a = fabs(x), z = x * x;
  V inner, g;
  const V t = clamp<V>(a, is_f32<V> ? T(0.92) : T(0.99), is_f32<V> ? T(4) : T(6));
  if constexpr (is_f32<V>) {
    inner = poly<V>(z, 0.12837915f, -0.3761249436f, 0.1128180303f, -0.02676557177f, 0.004990982998f, -0.0005976893768f);
    g = poly<V>(t, 0.0001758909656f, -1.129520909f, -0.6333344669f, -0.1082941678f, 0.02512877883f, -0.004174706036f,
                0.0004352328313f, -2.116319425e-5f);
  } else {
    inner = poly<V>(z, 0.12837916709551256679, -0.37612638903183546628, 0.11283791670945253232, -0.026866170643276218303,
                0.0052239776074234678405, -0.00085483259896967580333, 0.00012055295320494294236,
                -0.000014924744663335489733, 1.6447517677871873706e-6, -1.6209175911748695663e-7,
                1.372297626592450327e-8, -7.8011888740977515657e-10);
    g = poly<V>(t, -1.692643972766739646e-7, -1.1283774296271814464, -0.63662803550735809493, -0.10274852061884201165,
                0.019080617268644685749, 0.00027696870483297983871, -0.0017651582804132030649,
                0.00063789914380575353252, -0.000042616132113219318222, -0.000071551706391737944921,
                0.000045545820308096001106, -0.000016687771248273075259, 4.3740506102510041212e-6,
                -8.6049305097510520809e-7, 1.2730201124672117352e-7, -1.3816047399405210622e-8,
                1.0412661539993941349e-9, -4.8752148425768805266e-11, 1.0683784623408136719e-12);
  }
  const V outer = copysign<V>(T(1) - exp_in_range<V>(g), x);
  return a < (is_f32<V> ? T(0.93) : T(1)) ? fma(x, inner, x) : outer;
}

// ------------------------------------------------------------------------------------------------ sine and cosine
// x = j pi/2 + r; pi/2 in pieces short enough for j times a piece to be exact. Beyond `limit` the C library reduces.
template <int Shift, class V> static __attribute__((noinline, cold)) V library_sine(V x) {
  if constexpr (is_f32<V>) { SH_LANES(V, (Shift ? __builtin_cosf(x[j]) : __builtin_sinf(x[j]))); }
  else { SH_LANES(V, (Shift ? __builtin_cos(x[j]) : __builtin_sin(x[j]))); }
}
template <int Shift, class V> SH_INLINE V sine(V x) {
  using T = elem<V>;
  const V t = fma(x, splat<V>(T(0x1.45f306dc9c883p-1)), splat<V>(magic<V>));
  const V n = t - magic<V>;
  const ints<V> quadrant = low_bits<V>(t) + Shift;
  V first, lost, s, c;  // r = first + lost
  if constexpr (is_f32<V>) {
    const V r2 = fma(n, splat<V>(-0x1.fb4p-12f), fma(n, splat<V>(-0x1.92p+0f), x));
    first = fma(n, splat<V>(-0x1.444p-24f), r2);
    lost = fma(n, splat<V>(-0x1.68c234c4p-39f), fma(n, splat<V>(-0x1.444p-24f), r2 - first));
    const V z = first * first;
    s = first + fma(first * z, poly<V>(z, -0.1666666666f, 0.008333331868f, -0.0001984008272f, 2.724939007e-6f), lost);
    c = fma(z, fma(z, poly<V>(z, 0.04166666465f, -0.001388830131f, 2.454753606e-5f), splat<V>(-0.5f)), fma(-first, lost, splat<V>(1.f)));
  } else {
    const V r2 = fma(n, splat<V>(-0x1.0b4611a6p-34), fma(n, splat<V>(-0x1.921fb544p+0), x));
    first = fma(n, splat<V>(-0x1.3198a2ep-69), r2);
    lost = fma(n, splat<V>(-0x1.b839a252p-104), fma(n, splat<V>(-0x1.3198a2ep-69), r2 - first));
    const V z = first * first;
    s = first + fma(first * z, poly<V>(z, -0.16666666666666664601, 0.0083333333333309264624, -0.00019841269836724877046,
                    2.7557316084930361364e-6, -2.5051128149984700183e-8, 1.5917861853805864743e-10), lost);
    const V w = z * 0.5, h = 1.0 - w;
    c = h + (((1.0 - h) - w) + fma(z * z, poly<V>(z, 0.041666666666666665375, -0.0013888888888887383327, 0.000024801587298744436523,
                    -2.7557317260628169948e-7, 2.0876143942503466464e-9, -1.1382464188417551833e-11), -first * lost));
  }
  V y = (quadrant & 1) != 0 ? c : s;
  y = bits<V>(bits<ints<V>>(y) ^ ((quadrant & 2) << (is_f32<V> ? 30 : 62)));
  if constexpr (Shift == 0) y = x == T(0) ? x : y;  // the sign of zero
  const auto inside = fabs(x) <= T(is_f32<V> ? 8192 : 1000000);
  if (any(~inside)) {
    const V library = library_sine<Shift, V>(x);
    y = inside ? y : library;
  }
  return y;
}
template <class V> SH_INLINE V sin(V x) { return sine<0, V>(x); }
template <class V> SH_INLINE V cos(V x) { return sine<1, V>(x); }
template <class V> SH_INLINE V rsqrt(V x) { return elem<V>(1) / sqrt(x); }
template <class V> SH_INLINE V rcp(V x) { return elem<V>(1) / x; }
template <class V> SH_INLINE V floor(V x) { return round_to<toward_floor>(x); }
template <class V> SH_INLINE V ceil(V x) { return round_to<toward_ceil>(x); }
template <class V> SH_INLINE V trunc(V x) { return round_to<toward_zero>(x); }
template <class V> SH_INLINE V round(V x) { return round_to<nearest_even>(x); }

}  // namespace native

// Functions of one floating-point argument with a vector form.
// (The scalar forms are templates too: what a kernel does not use is then not compiled.)
#define SH_UNARY(name) \
  template <class T> SH_INLINE number<T> name(T x) { \
    static_assert(is_float<T>, "cast to a floating-point type first"); \
    return native::name(native::splat<native::piece<T, 16 / sizeof(T)>>(x))[0]; } \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> x) { \
    static_assert(is_float<T>, "cast to a floating-point type first"); \
    SH_EACH((vec<T, N>::K), x.p[k] = native::name(x.p[k])); return x; }
SH_UNARY(exp) SH_UNARY(expm1) SH_UNARY(log) SH_UNARY(log1p) SH_UNARY(log2) SH_UNARY(log10) SH_UNARY(tanh)
SH_UNARY(sigmoid) SH_UNARY(erf) SH_UNARY(sin) SH_UNARY(cos) SH_UNARY(sqrt) SH_UNARY(rsqrt) SH_UNARY(rcp)

// Rounding leaves integers as they are.
#define SH_ROUNDING(name) \
  template <class T> SH_INLINE number<T> name(T x) { \
    if constexpr (is_float<T>) return native::name(native::splat<native::piece<T, 16 / sizeof(T)>>(x))[0]; \
    else return x; } \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> x) { \
    if constexpr (is_float<T>) { SH_EACH((vec<T, N>::K), x.p[k] = native::name(x.p[k])); } \
    return x; }
SH_ROUNDING(floor) SH_ROUNDING(ceil) SH_ROUNDING(trunc) SH_ROUNDING(round)

// -1, 0 or 1 of the same type; 0 for NaN, as torch.sign.
template <class T> SH_INLINE number<T> sign(T x) { return T(x > T(0)) - T(x < T(0)); }
template <class T, int N> SH_INLINE vec<T, N> sign(vec<T, N> x) {
  return sub(cast<T>(gt(x, T(0))), cast<T>(lt(x, T(0))));
}

// ------------------------------------------------------------------------------------------------ lane by lane
#define SH_VECTOR_OF(name) \
  template <class T, int N> SH_INLINE vec<T, N> name(vec<T, N> x) { \
    for (int j = 0; j < N; ++j) x.set(j, name(T(x[j]))); \
    return x; }
#define SH_LIBRARY(name) \
  template <class T> SH_INLINE number<T> name(T x) { \
    static_assert(is_float<T>, "cast to a floating-point type first"); \
    if constexpr (is_same<T, float>) return __builtin_##name##f(x); \
    else return __builtin_##name(x); } \
  SH_VECTOR_OF(name)
SH_LIBRARY(erfc) SH_LIBRARY(tan) SH_LIBRARY(asin) SH_LIBRARY(acos) SH_LIBRARY(atan) SH_LIBRARY(sinh) SH_LIBRARY(cosh)
SH_LIBRARY(asinh) SH_LIBRARY(acosh) SH_LIBRARY(atanh) SH_LIBRARY(lgamma) SH_LIBRARY(exp2)

#define SH_LIBRARY2(name, function) \
  template <class T> SH_INLINE number<T> name(T x, same_t<T> y) { \
    static_assert(is_float<T>, "cast to a floating-point type first"); \
    if constexpr (is_same<T, float>) return __builtin_##function##f(x, y); \
    else return __builtin_##function(x, y); } \
  SH_BINARY_LANES(name, name)
SH_LIBRARY2(atan2, atan2)
SH_LIBRARY2(copysign, copysign)

// Remainder with the sign of the dividend. An integer divisor of zero gives 0 instead of a machine trap.
template <class T> SH_INLINE number<T> fmod(T a, same_t<T> b) {
  if constexpr (is_same<T, float>) return __builtin_fmodf(a, b);
  else if constexpr (is_same<T, double>) return __builtin_fmod(a, b);
  else if (b == T(0) || (T(-1) < T(0) && b == T(-1))) return T(0);
  else return T(a % b);
}
SH_BINARY_LANES(fmod, fmod)
// Remainder with the sign of the divisor (Python's %, torch.remainder).
template <class T> SH_INLINE number<T> mod(T a, same_t<T> b) {
  const T r = fmod(a, b);
  return r != T(0) && (r < T(0)) != (b < T(0)) ? T(r + b) : r;
}
SH_BINARY_LANES(mod, mod)
// Quotient rounded down (torch.floor_divide); for floats by way of fmod, so that it agrees with mod.
template <class T> SH_INLINE number<T> floordiv(T a, same_t<T> b) {
  if constexpr (is_float<T>) {
    if (b == T(0)) return a / b;
    const T r = fmod(a, b);
    T q = (a - r) / b;
    if (r != T(0) && (r < T(0)) != (b < T(0))) q -= T(1);
    if (q == T(0)) return copysign(T(0), a / b);
    const T whole = floor(q);
    return q - whole > T(0.5) ? whole + T(1) : whole;
  } else {
    const T q = div(a, b);
    return b != T(0) && fmod(a, b) != T(0) && (a < T(0)) != (b < T(0)) ? T(q - 1) : q;
  }
}
SH_BINARY_LANES(floordiv, floordiv)

// Integer powers by squaring (a negative exponent gives 0 except for bases 1 and -1, as torch.pow).
template <class T> SH_INLINE number<T> pow(T x, same_t<T> y) {
  if constexpr (is_same<T, float>) return __builtin_powf(x, y);
  else if constexpr (is_same<T, double>) return __builtin_pow(x, y);
  else {
    if (y < T(0)) return x == T(1) ? T(1) : x == T(-1) ? (y % 2 ? T(-1) : T(1)) : T(0);
    using U = typename native::int_of<sizeof(T)>::utype;
    U base = U(x), result = 1;
    for (U e = U(y); e; e >>= 1, base = U(base * base)) if (e & 1) result = U(result * base);
    return T(result);
  }
}
SH_BINARY_LANES(pow, pow)

// Digamma: recurrence up to x >= 8, then the asymptotic series; reflection for negative arguments.
template <class T> static inline double digamma_scalar(T argument) {
  double x = argument;
  if (x == 0) return __builtin_copysign(__builtin_inf(), -x);
  double shift = 0;
  if (x < 0) {
    if (x == __builtin_floor(x)) return __builtin_nan("");
    const double part = x - __builtin_floor(x);
    shift = -3.14159265358979323846 / __builtin_tan(3.14159265358979323846 * part);
    x = 1 - x;
  }
  for (; x < 10; x += 1) shift -= 1 / x;
  const double z = 1 / (x * x);
  const double tail = z * (1. / 12 - z * (1. / 120 - z * (1. / 252 - z * (1. / 240 - z * (1. / 132 - z * (691. / 32760 - z / 12))))));
  return shift + __builtin_log(x) - 0.5 / x - tail;
}
template <class T> SH_INLINE number<T> digamma(T x) { return T(digamma_scalar(x)); }
SH_VECTOR_OF(digamma)

// Inverse error function: a starting value from Winitzki's closed formula, then Halley's iteration on erf or erfc.
template <class T> static inline double erfinv_scalar(T argument) {
  const double y = argument, a = __builtin_fabs(y);
  if (!(a < 1)) return a == 1 ? __builtin_copysign(__builtin_inf(), y) : __builtin_nan("");
  if (a < 1e-9) return y * 0.88622692545275801365;
  const double l = __builtin_log1p(-a * a), b = 2 / (3.14159265358979323846 * 0.147) + l / 2;
  double x = __builtin_sqrt(__builtin_sqrt(b * b - l / 0.147) - b);
  for (int i = 0; i < 3; ++i) {
    const double error = a < 0.5 ? __builtin_erf(x) - a : (1 - a) - __builtin_erfc(x);
    const double step = error / (1.12837916709551257390 * __builtin_exp(-x * x));
    x -= step / (1 + x * step);
  }
  return __builtin_copysign(x, y);
}
template <class T> SH_INLINE number<T> erfinv(T x) { return T(erfinv_scalar(x)); }
SH_VECTOR_OF(erfinv)

}  // namespace sh
