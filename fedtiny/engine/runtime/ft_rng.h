/* ft_rng.h: the one source of randomness; fedtiny/rng.py is its twin.
 *
 * Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11).
 * A stream is named by (run, round, device, purpose); its word w is word w mod 4 of block w / 4.
 * Any word can be had without the ones before it.
 */
#ifndef FT_RNG_H
#define FT_RNG_H

#include "ft_math.h"

typedef enum {
  FT_PURPOSE_INIT = 1,
  FT_PURPOSE_SELECT = 2,
  FT_PURPOSE_SHUFFLE = 3,
  FT_PURPOSE_TASK = 4,
  FT_PURPOSE_SUPPORT = 5,
  FT_PURPOSE_QUERY = 6,
  FT_PURPOSE_SPLIT = 7,
  FT_PURPOSE_AVAILABILITY = 8,
  FT_PURPOSE_DROPOUT = 9,
  FT_PURPOSE_CONTACT = 10,
  FT_PURPOSE_PROFILE = 11,
  FT_PURPOSE_BACKOFF = 12,
  FT_PURPOSE_EPISODE = 13,
  FT_PURPOSE_MASK = 14,
  FT_PURPOSE_ROUNDING = 15,
  FT_PURPOSE_NOISE = 16,
  FT_PURPOSE_SUBSET = 17,
  FT_PURPOSE_ATTACK = 18,
  FT_PURPOSE_WEIGHT = 19,
  FT_PURPOSE_STREAM = 20
} ft_purpose;

typedef struct {
  uint64_t run;                    /* the seed: the generator's key */
  uint32_t round, device, purpose; /* with the number of the block: its counter */
} ft_stream;

#define FT_PHILOX_M0 0xD2511F53u
#define FT_PHILOX_M1 0xCD9E8D57u
#define FT_PHILOX_W0 0x9E3779B9u
#define FT_PHILOX_W1 0xBB67AE85u

/* Replaces the counter c by its block. */
FT_INLINE void ft_philox(uint32_t c[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)FT_PHILOX_M0 * c[0], p1 = (uint64_t)FT_PHILOX_M1 * c[2];
    c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ key0;
    c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ key1;
    c[1] = (uint32_t)p1;
    c[3] = (uint32_t)p0;
    key0 += FT_PHILOX_W0;
    key1 += FT_PHILOX_W1;
  }
}

/* Words 4 block .. 4 block + 3 of a stream. */
FT_INLINE void ft_words(const ft_stream *stream, uint32_t block, uint32_t words[4]) {
  words[0] = block;
  words[1] = stream->device;
  words[2] = stream->round;
  words[3] = stream->purpose;
  ft_philox(words, (uint32_t)stream->run, (uint32_t)(stream->run >> 32));
}

/* [0, 1), a multiple of 2^-24. */
FT_INLINE float ft_uniform(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

FT_INLINE float ft_uniform_in(uint32_t word, float low, float high) {
  return low + (high - low) * ft_uniform(word);
}

/* An integer in [0, n); no value is more frequent than another by more than n / 2^32. */
FT_INLINE uint32_t ft_below(uint32_t word, uint32_t n) {
  return (uint32_t)(((uint64_t)word * n) >> 32);
}

/* Finalizer of MurmurHash3: every bit of the result depends on every bit of x. */
FT_INLINE uint32_t ft_mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
  x = (x ^ (x >> 13)) * 0xC2B2AE35u;
  return x ^ (x >> 16);
}

/* The key of ft_shuffled for one epoch: block `epoch` of (run, round, device, SHUFFLE). */
FT_INLINE void ft_epoch_key(ft_stream stream, uint32_t epoch, uint32_t key[4]) {
  stream.purpose = FT_PURPOSE_SHUFFLE;
  ft_words(&stream, epoch, key);
}

/* Position `at` of a permutation of [0, n), at < n, without a table: four Feistel rounds over the
 * smallest power of 4 that holds n, walked along its cycle until the result is below n. */
FT_INLINE uint32_t ft_shuffled(uint32_t at, uint32_t n, const uint32_t key[4]) {
  uint32_t half = 0;
  while (((uint64_t)1 << (2 * half)) < n) half++;
  uint32_t mask = ((uint32_t)1 << half) - 1;
  do {
    uint32_t left = at >> half, right = at & mask;
    for (int round = 0; round < 4; round++) {
      uint32_t next = left ^ (ft_mix(right ^ key[round]) & mask);
      left = right;
      right = next;
    }
    at = (left << half) | right;
  } while (at >= n);
  return at;
}

#ifndef FT_SMALL

/* 32 x 32 -> 64 bit products of the lanes with m, as high and low halves. */
FT_INLINE void ft_multiply8(v8u x, uint32_t m, v8u *high, v8u *low) {
#ifdef __AVX2__
  __m256i factor = _mm256_set1_epi64x((long long)m);
  __m256i even = _mm256_mul_epu32((__m256i)x, factor);
  __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), factor);
  *high = (v8u)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
  *low = (v8u)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
#else
  for (int i = 0; i < 8; i++) {
    uint64_t product = (uint64_t)x[i] * m;
    (*high)[i] = (uint32_t)(product >> 32);
    (*low)[i] = (uint32_t)product;
  }
#endif
}

/* Words 4 block .. 4 block + 31 of a stream, in their order. */
FT_INLINE void ft_words8(const ft_stream *stream, uint32_t block, v8u words[4]) {
  uint32_t key0 = (uint32_t)stream->run, key1 = (uint32_t)(stream->run >> 32);
  v8u zero = {0}, c0 = (v8u){0, 1, 2, 3, 4, 5, 6, 7} + block;
  v8u c1 = zero + stream->device, c2 = zero + stream->round, c3 = zero + stream->purpose;
  for (int round = 0; round < 10; round++) {
    v8u high0, low0, high1, low1;
    ft_multiply8(c0, FT_PHILOX_M0, &high0, &low0);
    ft_multiply8(c2, FT_PHILOX_M1, &high1, &low1);
    c0 = high1 ^ c1 ^ key0;
    c2 = high0 ^ c3 ^ key1;
    c1 = low1;
    c3 = low0;
    key0 += FT_PHILOX_W0;
    key1 += FT_PHILOX_W1;
  }
  v8u a = __builtin_shufflevector(c0, c1, 0, 8, 1, 9, 2, 10, 3, 11);
  v8u b = __builtin_shufflevector(c2, c3, 0, 8, 1, 9, 2, 10, 3, 11);
  v8u c = __builtin_shufflevector(c0, c1, 4, 12, 5, 13, 6, 14, 7, 15);
  v8u d = __builtin_shufflevector(c2, c3, 4, 12, 5, 13, 6, 14, 7, 15);
  words[0] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 2, 3, 10, 11);
  words[1] = __builtin_shufflevector(a, b, 4, 5, 12, 13, 6, 7, 14, 15);
  words[2] = __builtin_shufflevector(c, d, 0, 1, 8, 9, 2, 3, 10, 11);
  words[3] = __builtin_shufflevector(c, d, 4, 5, 12, 13, 6, 7, 14, 15);
}

FT_INLINE v8 ft_uniform_in8(v8u words, float low, float high) {
  return low + (high - low) * (__builtin_convertvector((v8i)(words >> 8), v8) * 0x1p-24f);
}

#endif
#endif
