/* ft_codes.h: the codes of a max-pooling, a vector at a time; private to the vector kernels. */
#ifndef FT_CODES_H
#define FT_CODES_H

#include "ft_blocks.h"

#ifndef FT_SMALL

FT_INLINE void ft_put_code_bits(uint32_t *words, size_t bit, uint64_t number) {
  number <<= bit % 32;
  words[bit / 32] |= (uint32_t)number;
  if (number >> 32) words[bit / 32 + 1] |= (uint32_t)(number >> 32);
}

/* Codes as floats, into words that were zero or hold them already. Those of two bits are added up
 * to one number, which is exact. */
FT_INLINE void ft_put_codes(uint32_t *words, uint32_t element, uint32_t bits, vw codes, int partial,
                            uint32_t lanes) {
  float lane[FT_WIDTH];
  if (bits == 2 && !partial) {
    static const float place[8] = {1, 4, 16, 64, 256, 1024, 4096, 16384};
    const vw x = codes * FT_W(load)(place);
    float number = (x[0] + x[1]) + (x[2] + x[3]);
#if FT_WIDTH == 8
    number += (x[4] + x[5]) + (x[6] + x[7]);
#endif
    ft_put_code_bits(words, (size_t)element * 2, (uint32_t)(int32_t)number);
    return;
  }
  FT_W(store)(lane, codes);
  for (uint32_t i = 0; i < (partial ? lanes : FT_WIDTH); i++)
    ft_put_code_bits(words, (size_t)(element + i) * bits, (uint32_t)(int32_t)lane[i]);
}

/* Codes as integers; +0 behind the first `lanes` if `partial`. */
FT_INLINE vwi ft_get_codes(const uint32_t *words, uint32_t element, uint32_t bits, int partial,
                           uint32_t lanes) {
  int32_t code[FT_WIDTH] = {0};
  const uint32_t count = partial ? lanes : FT_WIDTH;
  vwi codes;
#ifdef __AVX2__
  if (bits == 2 && !partial) {
    const size_t bit = (size_t)element * 2;
    uint64_t number = words[bit / 32];
    if (bit % 32 > 16) number |= (uint64_t)words[bit / 32 + 1] << 32;
    const vwu place = {0, 2, 4, 6, 8, 10, 12, 14};
    const uint32_t low = (uint32_t)(number >> bit % 32);
    return (vwi)(((vwu){low, low, low, low, low, low, low, low} >> place) & 3u);
  }
#endif
  for (uint32_t i = 0; i < count; i++) code[i] = (int32_t)ft_code_at(words, element + i, bits);
  memcpy(&codes, code, sizeof codes);
  return codes;
}

/* Lane by lane the one of four values that a code below four names. */
FT_INLINE vw ft_choose(const float value[4], vwi codes) {
#ifdef __AVX__
  const __m128 four = _mm_set_ps(value[3], value[2], value[1], value[0]);
  return (vw)_mm256_permutevar_ps(_mm256_set_m128(four, four), (__m256i)codes);
#else
  const vw low = FT_W(select)(codes == 0, FT_W(set)(value[0]), FT_W(set)(value[1]));
  const vw high = FT_W(select)(codes == 2, FT_W(set)(value[2]), FT_W(set)(value[3]));
  return FT_W(select)(codes < 2, low, high);
#endif
}

#endif
#endif
