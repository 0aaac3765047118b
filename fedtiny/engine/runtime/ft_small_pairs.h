/* ft_small_pairs.h: two int16 in a word, for a microcontroller (FT_SMALL).
 *
 * The DSP instructions of an Armv7E-M core widen two bytes of a word at once, and add two products
 * at once. Elsewhere the same is done in C.
 */
#ifndef FT_SMALL_PAIRS_H
#define FT_SMALL_PAIRS_H

#include "ft_lanes.h"

/* Four bytes, wherever they stand; the first is the lowest. */
FT_INLINE uint32_t ft_word_at(const int8_t *from) {
  uint32_t word;
  memcpy(&word, from, sizeof word);
  return word;
}

/* What is loaded through the pointer is loaded after this sum: registers are few. */
#define FT_AFTER(sum, pointer) __asm__("" : "+r"(sum), "+r"(pointer))

typedef uint32_t ft_two;   /* the first in the lower half */

FT_INLINE ft_two ft_both(int32_t value) { return (uint32_t)value << 16 | (uint16_t)value; }

#ifdef __ARM_FEATURE_DSP

#define FT_INSTRUCTION(name, text)                                                                 \
  FT_INLINE uint32_t name(uint32_t a, uint32_t b) {                                                \
    uint32_t result;                                                                               \
    __asm__(text : "=r"(result) : "r"(a), "r"(b));                                                 \
    return result;                                                                                 \
  }
/* Bytes 0 and 2, or 1 and 3, of a word b, each plus a number of the pair a. */
FT_INSTRUCTION(ft_evens_plus, "sxtab16 %0, %1, %2")
FT_INSTRUCTION(ft_odds_plus, "sxtab16 %0, %1, %2, ror #8")
/* Bytes 0, 1 of a and of b in turn; and their bytes 2, 3. */
FT_INSTRUCTION(ft_firsts, "pkhbt %0, %1, %2, lsl #16")
FT_INSTRUCTION(ft_lasts, "pkhtb %0, %2, %1, asr #16")
#undef FT_INSTRUCTION

FT_INLINE ft_two ft_evens(uint32_t word) {
  ft_two result;
  __asm__("sxtb16 %0, %1" : "=r"(result) : "r"(word));
  return result;
}

FT_INLINE ft_two ft_odds(uint32_t word) {
  ft_two result;
  __asm__("sxtb16 %0, %1, ror #8" : "=r"(result) : "r"(word));
  return result;
}

#define FT_INSTRUCTION(name, text)                                                                 \
  FT_INLINE int32_t name(int32_t sum, ft_two a, ft_two b) {                                        \
    __asm__(text : "=r"(sum) : "r"(a), "r"(b), "r"(sum));                                          \
    return sum;                                                                                    \
  }
/* sum + a0 * b0 + a1 * b1; sum + a0 * b0; sum + a1 * b1 */
FT_INSTRUCTION(ft_add_both, "smlad %0, %1, %2, %3")
FT_INSTRUCTION(ft_add_first, "smlabb %0, %1, %2, %3")
FT_INSTRUCTION(ft_add_second, "smlatt %0, %1, %2, %3")
#undef FT_INSTRUCTION

/* Two of them, and where the next stand. */
FT_INLINE const ft_two *ft_take_two(const ft_two *from, ft_two *one, ft_two *other) {
  const struct { ft_two two[2]; } *both = (const void *)from;
  __asm__("ldrd %0, %1, [%2], #8" : "=&r"(*one), "=&r"(*other), "+r"(from) : "m"(*both));
  return from;
}

#else

FT_INLINE const ft_two *ft_take_two(const ft_two *from, ft_two *one, ft_two *other) {
  *one = from[0], *other = from[1];
  return from + 2;
}

FT_INLINE int32_t ft_first_of(ft_two pair) { return (int16_t)(uint16_t)pair; }
FT_INLINE int32_t ft_second_of(ft_two pair) { return (int16_t)(uint16_t)(pair >> 16); }

FT_INLINE ft_two ft_pair_of(int32_t first, int32_t second) {
  return (uint32_t)second << 16 | (uint16_t)first;
}

FT_INLINE ft_two ft_evens_plus(ft_two a, uint32_t word) {
  return ft_pair_of(ft_first_of(a) + (int8_t)(uint8_t)word,
                    ft_second_of(a) + (int8_t)(uint8_t)(word >> 16));
}

FT_INLINE ft_two ft_odds_plus(ft_two a, uint32_t word) { return ft_evens_plus(a, word >> 8); }
FT_INLINE ft_two ft_evens(uint32_t word) { return ft_evens_plus(0, word); }
FT_INLINE ft_two ft_odds(uint32_t word) { return ft_evens_plus(0, word >> 8); }
FT_INLINE uint32_t ft_firsts(uint32_t a, uint32_t b) { return (a & 0xFFFFu) | b << 16; }
FT_INLINE uint32_t ft_lasts(uint32_t a, uint32_t b) { return a >> 16 | (b & 0xFFFF0000u); }

FT_INLINE int32_t ft_add_first(int32_t sum, ft_two a, ft_two b) {
  return sum + ft_first_of(a) * ft_first_of(b);
}

FT_INLINE int32_t ft_add_second(int32_t sum, ft_two a, ft_two b) {
  return sum + ft_second_of(a) * ft_second_of(b);
}

FT_INLINE int32_t ft_add_both(int32_t sum, ft_two a, ft_two b) {
  return ft_add_second(ft_add_first(sum, a, b), a, b);
}

#endif
#endif
