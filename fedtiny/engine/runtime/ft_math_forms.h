/* ft_math_forms.h: the text of ft_math.h's functions, read once for floats and once for lanes.
 *
 * FT_F is the type of the numbers, FT_U that of their bits, FT_FORM(name) a function of this form.
 * Both sides of a choice are always computed: what a NaN or an infinity does to the unused side
 * does no harm, because no float is ever converted to an integer. Adding 1.5 * 2^23 rounds a small
 * number to an integer, ties to even, and leaves it in the low bits of the sum.
 */

/* k = round(x / ln 2), r = x - k ln 2 in two parts, exp(x) = 2^k exp(r); polynomial of Cephes. */
FT_INLINE FT_F FT_FORM(exp)(FT_F x) {
  FT_F shifted = x * 1.44269504f + 12582912.0f;
  FT_F k = shifted - 12582912.0f;
  FT_F r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  FT_F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  FT_F y = FT_FORM(float)(FT_FORM(bits)(p) + (FT_FORM(bits)(shifted) << 23));
  y = FT_FORM(select)(x < -87.33654f, FT_FORM(set)(0.0f), y);
  y = FT_FORM(select)(x > 88.72283f, FT_FORM(set)(__builtin_inff()), y);
  return FT_FORM(select)(x == x, y, x);
}

/* x = 2^e m with m in [sqrt(1/2), sqrt(2)), log(x) = log(m) + e ln 2 in two parts; Cephes. */
FT_INLINE FT_F FT_FORM(log)(FT_F x) {
  FT_F scaled = FT_FORM(select)(x < 1.17549435e-38f, x * 8388608.0f, x);
  FT_F e = FT_FORM(select)(x < 1.17549435e-38f, FT_FORM(set)(-150.0f), FT_FORM(set)(-127.0f));
  FT_U bits = FT_FORM(bits)(scaled) + (0x3f800000u - 0x3f3504f3u);
  e = e + FT_FORM(signed)(bits >> 23);
  FT_F z = FT_FORM(float)((bits & 0x7fffffu) + 0x3f3504f3u) - 1.0f;
  FT_F p = z * 7.0376836292e-2f + -1.1514610310e-1f;
  p = p * z + 1.1676998740e-1f;
  p = p * z + -1.2420140846e-1f;
  p = p * z + 1.4249322787e-1f;
  p = p * z + -1.6668057665e-1f;
  p = p * z + 2.0000714765e-1f;
  p = p * z + -2.4999993993e-1f;
  p = p * z + 3.3333331174e-1f;
  FT_F zz = z * z;
  FT_F y = (p * z * zz + e * -2.12194440e-4f) - zz * 0.5f;
  y = (z + y) + e * 0.693359375f;
  y = FT_FORM(select)(x > 0.0f, y, FT_FORM(set)(__builtin_nanf("")));
  y = FT_FORM(select)(x == 0.0f, FT_FORM(set)(-__builtin_inff()), y);
  return FT_FORM(select)(x < __builtin_inff(), y, x);
}

/* x P(x^2) / Q(x^2), a least-squares fit of the relative error on [-9, 9], past which it reaches 1. */
FT_INLINE FT_F FT_FORM(tanh)(FT_F x) {
  x = FT_FORM(max)(FT_FORM(set)(-9.1f), FT_FORM(min)(FT_FORM(set)(9.1f), x));
  FT_F t = x * x;
  FT_F p = t * 1.33534121e-08f + 2.06081841e-05f;
  p = p * t + 0.00349553449f;
  p = p * t + 0.133809811f;
  p = p * t + 0.99999998f;
  FT_F q = t * 7.77604676e-07f + 0.000328554625f;
  q = q * t + 0.0258767799f;
  q = q * t + 0.467142968f;
  q = q * t + 1.0f;
  FT_F y = (x * p) / q;
  return FT_FORM(max)(FT_FORM(set)(-1.0f), FT_FORM(min)(FT_FORM(set)(1.0f), y));
}

FT_INLINE FT_F FT_FORM(sigmoid)(FT_F x) { return 1.0f / (1.0f + FT_FORM(exp)(-x)); }

/* sin of r + (quarter + j) pi / 2, where j = round(x / (pi / 2)) and r = x - j pi / 2 in three parts
 * (Cody and Waite: the first two products are exact up to |j| = 2^13); polynomials of Cephes. */
FT_INLINE FT_F FT_FORM(sin_of_quarters)(FT_F x, uint32_t quarter) {
  FT_F shifted = x * 0.636619772f + 12582912.0f;
  FT_F j = shifted - 12582912.0f;
  FT_U turn = FT_FORM(bits)(shifted) + quarter;
  FT_F r = ((x - j * 1.5703125f) - j * 4.83751297e-4f) - j * 7.54978995e-8f;
  r = FT_FORM(max)(FT_FORM(set)(-0.8f), FT_FORM(min)(FT_FORM(set)(0.8f), r));
  FT_F z = r * r;
  FT_F s = z * -1.9515295891e-4f + 8.3321608736e-3f;
  s = (s * z + -1.6666654611e-1f) * z * r + r;
  FT_F c = z * 2.443315711809948e-5f + -1.388731625493765e-3f;
  c = ((c * z + 4.166664568298827e-2f) * (z * z) - z * 0.5f) + 1.0f;
  FT_F y = FT_FORM(select)((turn & 1u) != 0u, c, s);
  return FT_FORM(float)(FT_FORM(bits)(y) ^ ((turn & 2u) << 30));
}

FT_INLINE FT_F FT_FORM(sin)(FT_F x) { return FT_FORM(sin_of_quarters)(x, 0); }
FT_INLINE FT_F FT_FORM(cos)(FT_F x) { return FT_FORM(sin_of_quarters)(x, 1); }
