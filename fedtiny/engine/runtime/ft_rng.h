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

typedef uint64_t v4w __attribute__((vector_size(32)));

/* The low halves of the lanes times m. */
FT_INLINE v4w ft_multiply4(v4w x, uint32_t m) {
#ifdef __AVX2__
  return (v4w)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x((long long)m));
#else
  return (x & 0xFFFFFFFFu) * m;
#endif
}

/* What the blocks of a stream share: in the first two rounds most numbers are those of the stream.
 * A lane is a block, of which only the low halves count. */
typedef struct { v4w second, third, fourth, fifth, key[8][2]; } ft_blocks;

FT_INLINE ft_blocks ft_blocks_of(const ft_stream *stream) {
  const uint32_t key0 = (uint32_t)stream->run, key1 = (uint32_t)(stream->run >> 32);
  const uint64_t p1 = (uint64_t)FT_PHILOX_M1 * stream->round;
  const uint32_t c0 = (uint32_t)(p1 >> 32) ^ stream->device ^ key0;
  const uint64_t p0 = (uint64_t)FT_PHILOX_M0 * c0;
  const v4w zero = {0};
  ft_blocks blocks;
  blocks.second = zero + (stream->purpose ^ key1);
  blocks.third = zero + ((uint32_t)p1 ^ (key0 + FT_PHILOX_W0));
  blocks.fourth = zero + ((uint32_t)(p0 >> 32) ^ (key1 + FT_PHILOX_W1));
  blocks.fifth = zero + (uint32_t)p0;
  for (uint32_t k = 0; k < 8; k++) {
    blocks.key[k][0] = zero + (key0 + (k + 2) * FT_PHILOX_W0);
    blocks.key[k][1] = zero + (key1 + (k + 2) * FT_PHILOX_W1);
  }
  return blocks;
}

/* The words of blocks `block` .. `block` + 3, in their order. */
FT_INLINE void ft_words4(const ft_blocks *blocks, uint32_t block, v8u words[2]) {
  const v4w p0 = ft_multiply4((v4w){0, 2, 1, 3} + block, FT_PHILOX_M0);
  const v4w p1 = ft_multiply4((p0 >> 32) ^ blocks->second, FT_PHILOX_M1);
  v4w c0 = (p1 >> 32) ^ blocks->third, c1 = p1, c2 = p0 ^ blocks->fourth, c3 = blocks->fifth;
  FT_UNROLL for (uint32_t k = 0; k < 8; k++) {
    const v4w high0 = ft_multiply4(c0, FT_PHILOX_M0), high1 = ft_multiply4(c2, FT_PHILOX_M1);
    c0 = (high1 >> 32) ^ (c1 ^ blocks->key[k][0]);
    c2 = (high0 >> 32) ^ (c3 ^ blocks->key[k][1]);
    c1 = high1;
    c3 = high0;
  }
  const v4w low = (v4w)__builtin_shufflevector((v8u)c0, (v8u)c1, 0, 8, 2, 10, 4, 12, 6, 14);
  const v4w high = (v4w)__builtin_shufflevector((v8u)c2, (v8u)c3, 0, 8, 2, 10, 4, 12, 6, 14);
  words[0] = (v8u)__builtin_shufflevector(low, high, 0, 4, 2, 6);
  words[1] = (v8u)__builtin_shufflevector(low, high, 1, 5, 3, 7);
}

/* Words 4 block .. 4 block + 31 of a stream, in their order. */
FT_INLINE void ft_words8(const ft_stream *stream, uint32_t block, v8u words[4]) {
  const ft_blocks blocks = ft_blocks_of(stream);
  ft_words4(&blocks, block, words);
  ft_words4(&blocks, block + 4, words + 2);
}

FT_INLINE v8 ft_uniform8(v8u words) {
  return __builtin_convertvector((v8i)(words >> 8), v8) * 0x1p-24f;
}

FT_INLINE v8 ft_uniform_in8(v8u words, float low, float high) {
  return low + (high - low) * ft_uniform8(words);
}

#endif
#endif
