// Special functions that few kernels use: included only where one is called. All compute in double, lane by lane.
// The algorithms are those of ir/scalar_special.py, which says where they come from.
#pragma once
#include "shorthaul_math.h"

extern "C" double j0(double); extern "C" double j1(double); extern "C" double y0(double); extern "C" double y1(double);

namespace sh {
namespace special {

static const double pi = 3.14159265358979323846, inf = __builtin_inf();

// Hurwitz zeta: direct terms up to a = q + n > 9, then Euler-Maclaurin.
static double zeta_1(double s, double q) {
  if (s == 1) return inf;
  if (!(s > 1) || q != q) return __builtin_nan("");
  if (q <= 0) {
    if (q == __builtin_floor(q)) return inf;
    if (s != __builtin_floor(s)) return __builtin_nan("");
  }
  static const double c[] = {1. / 12, -1. / 720, 1. / 30240, -1. / 1209600, 1. / 47900160, -691. / 1307674368000, 1. / 74724249600,
                             -3617. / 10670622842880000, 43867. / 5109094217170944000, -174611. / 802857662698291200000.};
  double sum = 0, a = q;
  for (; a <= 9; a += 1) sum += __builtin_pow(a, -s);
  double term = __builtin_pow(a, -s);
  sum += term * a / (s - 1) + term / 2;
  term *= s / a;
  for (int k = 0; k < 10; ++k) { sum += c[k] * term; term *= (s + 2 * k + 1) * (s + 2 * k + 2) / (a * a); }
  return sum;
}
static double trigamma_1(double x) {
  if (x >= 0.5 || x != x) return zeta_1(2, x);
  if (x == __builtin_floor(x)) return inf;
  const double s = __builtin_sin(pi * (x - __builtin_floor(x)));
  return pi * pi / (s * s) - zeta_1(2, 1 - x);
}

// exp(-|x|) I_order(x)
static double bessel_ie(int order, double argument) {
  const double x = __builtin_fabs(argument), sign = order == 1 && argument < 0 ? -1 : 1;
  if (x == inf) return 0;
  if (order == 1 && x < 1) {
    double sum = 0, term = x / 2;
    for (int k = 1; k < 14; ++k) { sum += term; term *= x * x / 4 / k / (k + 1); }
    return sign * __builtin_exp(-x) * sum;
  }
  double sum = 0;
  if (x <= 30) {
    for (int k = 0; k < 48; ++k) {
      const double c = __builtin_cos(pi * (k + 0.5) / 48);
      sum += __builtin_exp(x * (c - 1)) * (order ? c : 1);
    }
    return sign * sum / 48;
  }
  double term = 1;
  for (int k = 1; k < 26; ++k) { sum += term; term *= ((2 * k - 1) * (2 * k - 1) - 4 * order) / (8. * k * x); }
  return sign * sum / __builtin_sqrt(2 * pi * x);
}
static double i0e_1(double x) { return bessel_ie(0, x); }
static double i1e_1(double x) { return bessel_ie(1, x); }
static double i0_1(double x) { return __builtin_exp(__builtin_fabs(x)) * bessel_ie(0, x); }
static double i1_1(double x) { return __builtin_exp(__builtin_fabs(x)) * bessel_ie(1, x); }

// exp(x) K_order(x)
static double bessel_ke(int order, double x) {
  if (!(x > 0)) return x == 0 ? inf : __builtin_nan("");
  const double h = x < 9 ? 0.2 : 0.6 / __builtin_sqrt(x);
  double sum = 0.5;
  for (int k = 1;; ++k) {
    const double s = __builtin_sinh(k * h / 2), rest = 2 * x * s * s;  // x (cosh(kh) - 1)
    if (!(rest < 40)) break;
    sum += __builtin_exp(-rest) * (order ? 1 + 2 * s * s : 1);
  }
  return h * sum;
}
static double k0e_1(double x) { return bessel_ke(0, x); }
static double k1e_1(double x) { return bessel_ke(1, x); }
static double k0_1(double x) { return __builtin_exp(-x) * bessel_ke(0, x); }
static double k1_1(double x) { return __builtin_exp(-x) * bessel_ke(1, x); }

static double erfcx_1(double x) {
  if (x < 0) return 2 * __builtin_exp(x * x) - erfcx_1(-x);
  if (x < 2) return __builtin_exp(x * x) * __builtin_erfc(x);
  double rest = x;
  for (int k = 60; k > 0; --k) rest = x + k / 2. / rest;
  return 1 / (1.77245385090551602730 * rest);
}
static double ndtri_1(double p) {
  if (!(p > 0 && p < 1)) return p == 0 ? -inf : p == 1 ? inf : __builtin_nan("");
  const double q = p < 0.5 ? p : 1 - p, l = __builtin_log(4 * q * (1 - q)), b = 2 / (pi * 0.147) + l / 2;
  double z = __builtin_sqrt(__builtin_fmax(__builtin_sqrt(b * b - l / 0.147) - b, 0));
  for (int i = 0; i < 4; ++i) {
    const double error = q < 0.25 ? 2 * q - __builtin_erfc(z) : __builtin_erf(z) - (1 - 2 * q);
    const double step = error / (1.12837916709551257390 * __builtin_exp(-z * z));
    z -= step / (1 + z * step);
  }
  return (p < 0.5 ? -1 : 1) * 1.41421356237309504880 * z;
}
// Regularized incomplete gamma function: the lower one by its series, the upper one by its continued fraction.
static double gamma_ratio(double a, double x, bool upper) {
  if (!(a >= 0 && x >= 0) || (a == 0 && x == 0) || (a == inf && x == inf)) return __builtin_nan("");
  if (a == 0 || x == inf) return upper ? 0 : 1;
  if (x == 0 || a == inf) return upper ? 1 : 0;
  const double scale = __builtin_exp(a * __builtin_log(x) - x - __builtin_lgamma(a));
  if (x < a + 1) {
    double term = 1 / a, sum = term;
    for (double k = a + 1; term > sum * 1e-17; k += 1) sum += term *= x / k;
    return upper ? 1 - scale * sum : scale * sum;
  }
  double b = x + 1 - a, c = 1e300, d = 1 / b, h = d;  // modified Lentz
  for (int i = 1; i < 100000; ++i) {
    const double an = -i * (i - a);
    b += 2;
    d = 1 / (an * d + b);
    c = b + an / c;
    h *= d * c;
    if (__builtin_fabs(d * c - 1) < 1e-16) break;
  }
  return upper ? scale * h : 1 - scale * h;
}
static double igamma_1(double a, double x) { return gamma_ratio(a, x, false); }
static double igammac_1(double a, double x) { return gamma_ratio(a, x, true); }
static double mantissa_1(double x) { int e; return __builtin_frexp(x, &e); }
static double exponent_1(double x) { int e = 0; if (__builtin_fabs(x) < inf) __builtin_frexp(x, &e); return e; }
static double bessel_j0_1(double x) { return j0(x); }
static double bessel_j1_1(double x) { return j1(x); }
static double bessel_y0_1(double x) { return x < 0 ? __builtin_nan("") : y0(x); }
static double bessel_y1_1(double x) { return x < 0 ? __builtin_nan("") : y1(x); }

// Ai: Maclaurin series in the middle, K_1/3 to the right, the asymptotic series to the left.
static double airy_ai_1(double x) {
  if (x != x || __builtin_fabs(x) == inf) return x == x ? 0 : x;
  const double zeta = 2. / 3 * __builtin_fabs(x) * __builtin_sqrt(__builtin_fabs(x));
  if (x > 1) {
    const double h = zeta < 9 ? 0.2 : 0.6 / __builtin_sqrt(zeta);
    double sum = 0.5;
    for (int k = 1;; ++k) {
      const double s = __builtin_sinh(k * h / 2), rest = 2 * zeta * s * s;
      if (!(rest < 40)) break;
      sum += __builtin_exp(-rest) * __builtin_cosh(k * h / 3);
    }
    return __builtin_sqrt(x / 3) / pi * __builtin_exp(-zeta) * h * sum;
  }
  if (x > -7) {
    double f = 0, g = 0, a = 0.35502805388781723926, b = 0.25881940379280679840 * x;
    for (int k = 0; k < 80; ++k) {
      f += a; g += b;
      a *= x * x * x / ((3 * k + 2) * (3 * k + 3)); b *= x * x * x / ((3 * k + 3) * (3 * k + 4));
    }
    return f - g;
  }
  double even = 0, odd = 0, term = 1;
  for (int k = 0; k < 16; ++k) {
    (k % 2 ? odd : even) += k % 4 < 2 ? term : -term;
    term *= (6 * k + 5.) * (6 * k + 3.) * (6 * k + 1.) / (216. * (k + 1) * (2 * k + 1)) / zeta;
  }
  const double angle = zeta + pi / 4;
  return (__builtin_sin(angle) * even - __builtin_cos(angle) * odd) / (__builtin_sqrt(pi) * __builtin_sqrt(__builtin_sqrt(-x)));
}

// Orthogonal polynomials by their three-term recurrences: p1 at degree one, then step.
#define SH_POLYNOMIAL(name, p1, step) \
  static double name##_1(double x, double degree) { \
    const double n = __builtin_trunc(degree); \
    if (n != n) return n; \
    if (n < 1) return n < 0 ? 0 : 1; \
    double a = 1, b = p1; \
    for (double k = 1; k < n && b == b; k += 1) { const double next = step; a = b; b = next; } \
    return b; }
SH_POLYNOMIAL(chebyshev_t, x, 2 * x * b - a) SH_POLYNOMIAL(chebyshev_u, 2 * x, 2 * x * b - a)
SH_POLYNOMIAL(chebyshev_v, 2 * x - 1, 2 * x * b - a) SH_POLYNOMIAL(chebyshev_w, 2 * x + 1, 2 * x * b - a)
SH_POLYNOMIAL(hermite_h, 2 * x, 2 * (x * b - k * a)) SH_POLYNOMIAL(hermite_he, x, x * b - k * a)
SH_POLYNOMIAL(laguerre_l, 1 - x, ((2 * k + 1 - x) * b - k * a) / (k + 1)) SH_POLYNOMIAL(legendre_p, x, ((2 * k + 1) * x * b - k * a) / (k + 1))
#undef SH_POLYNOMIAL

#define SH_SPECIAL(name) \
  template <class T> SH_INLINE number<T> name(T x) { return T(name##_1(x)); } \
  SH_VECTOR_OF(name)
#define SH_SPECIAL2(name) \
  template <class T> SH_INLINE number<T> name(T x, same_t<T> y) { return T(name##_1(x, y)); } \
  SH_BINARY_LANES(name, name)
SH_SPECIAL(trigamma) SH_SPECIAL(i0) SH_SPECIAL(i1) SH_SPECIAL(i0e) SH_SPECIAL(i1e) SH_SPECIAL(k0) SH_SPECIAL(k1) SH_SPECIAL(k0e)
SH_SPECIAL(k1e) SH_SPECIAL(bessel_j0) SH_SPECIAL(bessel_j1) SH_SPECIAL(bessel_y0) SH_SPECIAL(bessel_y1) SH_SPECIAL(airy_ai)
SH_SPECIAL(erfcx) SH_SPECIAL(ndtri) SH_SPECIAL(mantissa) SH_SPECIAL(exponent)
SH_SPECIAL2(zeta) SH_SPECIAL2(igamma) SH_SPECIAL2(igammac)
SH_SPECIAL2(chebyshev_t) SH_SPECIAL2(chebyshev_u) SH_SPECIAL2(chebyshev_v) SH_SPECIAL2(chebyshev_w)
SH_SPECIAL2(hermite_h) SH_SPECIAL2(hermite_he) SH_SPECIAL2(laguerre_l) SH_SPECIAL2(legendre_p)
SH_LIBRARY2(nextafter, nextafter) SH_LIBRARY2(hypot, hypot)

template <class T> SH_INLINE number<T> gcd(T a, same_t<T> b) {
  using U = typename native::int_of<sizeof(T)>::utype;
  U x = a < T(0) ? U(0) - U(a) : U(a), y = b < T(0) ? U(0) - U(b) : U(b);
  while (y) { const U r = x % y; x = y; y = r; }
  return T(x);
}
SH_BINARY_LANES(gcd, gcd)

}  // namespace special
}  // namespace sh
