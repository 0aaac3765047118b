#include "ft_audio.h"

#include <math.h>

#include "ft_math.h"

#define TWO_PI 6.2831855f

static uint32_t transform(const ft_audio *audio) {
  uint32_t points = 4;
  while (points < audio->window) points *= 2;
  return points;
}

static int is_possible(const ft_audio *audio) {
  return audio->rate_hz >= 1 && audio->window >= 2 && audio->window <= FT_AUDIO_MAX_WINDOW &&
         audio->mels >= 1 && audio->mels <= FT_AUDIO_MAX_MELS &&
         audio->coefficients <= audio->mels && audio->low_hz >= 0.0f &&
         audio->low_hz < audio->high_hz && audio->high_hz <= (float)audio->rate_hz * 0.5f;
}

/* window | cosine, sine and mel position of each bin | DCT, coefficient by coefficient */
size_t ft_audio_table_floats(const ft_audio *audio) {
  if (!is_possible(audio)) return 0;
  size_t bins = transform(audio) / 2 + 1;
  return audio->window + 3 * bins + (size_t)audio->coefficients * audio->mels;
}

/* real part | imaginary part | energies, unless the frame is the place for them */
size_t ft_audio_scratch_floats(const ft_audio *audio) {
  return transform(audio) + (audio->coefficients ? audio->mels : 0);
}

size_t ft_audio_frame_floats(const ft_audio *audio) {
  return audio->coefficients ? audio->coefficients : audio->mels;
}

/* One copy of each in the code of a board. */
static float logarithm(float x) { return ft_log(x); }

static float cosine_of(uint32_t part, uint32_t whole) {
  return ft_cos((float)part * (TWO_PI / (float)whole));
}

static float mel(float hz) { return logarithm(1.0f + hz / 700.0f); }

/* Bin k stands at b + r: it rises in triangle b and falls in triangle b - 1. */
static int place_bins(const ft_audio *audio, uint32_t bins, float *position) {
  float low = mel(audio->low_hz), span = mel(audio->high_hz) - low;
  float spacing_hz = (float)audio->rate_hz / (float)transform(audio);
  uint32_t held = 0; /* triangles that hold a bin */
  for (uint32_t k = 0; k < bins; k++) {
    float at = (mel((float)k * spacing_hz) - low) / span * (float)(audio->mels + 1);
    position[k] = at;
    for (; held < audio->mels && (float)held < at; held++) {
      if (at >= (float)(held + 2)) return 0;
    }
  }
  return held == audio->mels;
}

int ft_audio_tables(const ft_audio *audio, float *tables) {
  uint32_t points = transform(audio), bins = points / 2 + 1, mels = audio->mels;
  float *cosine = tables + audio->window, *sine = cosine + bins, *position = sine + bins;
  float *dct = position + bins;
  for (uint32_t n = 0; n < audio->window; n++) {
    tables[n] = 0.5f - 0.5f * cosine_of(n, audio->window);
  }
  for (uint32_t k = 0; k < bins; k++) {
    cosine[k] = cosine_of(k, points);
    sine[k] = ft_sin((float)k * (TWO_PI / (float)points));
  }
  for (uint32_t c = 0; c < audio->coefficients; c++) {
    float scale = sqrtf((c ? 2.0f : 1.0f) / (float)mels);
    for (uint32_t m = 0; m < mels; m++) {
      dct[c * mels + m] = scale * cosine_of(c * (2 * m + 1) % (4 * mels), 4 * mels);
    }
  }
  return place_bins(audio, bins, position);
}

/* The weighted frame as half as many complex numbers, in bit-reversed order. */
static void load(const ft_audio *audio, const float *hann, const float *samples, uint32_t half,
                 float *re, float *im) {
  for (uint32_t n = 0, to = 0; n < half; n++) {
    uint32_t even = 2 * n, odd = even + 1, bit = half >> 1;
    re[to] = even < audio->window ? samples[even] * hann[even] : 0.0f;
    im[to] = odd < audio->window ? samples[odd] * hann[odd] : 0.0f;
    for (; to & bit; bit >>= 1) to ^= bit;
    to |= bit;
  }
}

static void butterflies(uint32_t half, const float *cosine, const float *sine, float *re,
                        float *im) {
  for (uint32_t span = 1; span < half; span *= 2) {
    uint32_t stride = half / span;
    for (uint32_t begin = 0; begin < half; begin += 2 * span) {
      float *re0 = re + begin, *re1 = re0 + span, *im0 = im + begin, *im1 = im0 + span;
      for (uint32_t k = 0; k < span; k++) {
        float c = cosine[k * stride], s = sine[k * stride];
        float turned_re = c * re1[k] + s * im1[k], turned_im = c * im1[k] - s * re1[k];
        re1[k] = re0[k] - turned_re;
        im1[k] = im0[k] - turned_im;
        re0[k] = re0[k] + turned_re;
        im0[k] = im0[k] + turned_im;
      }
    }
  }
}

/* The power of bin k of the real transform, from the complex one of half the length. */
static float power(uint32_t k, uint32_t half, float c, float s, const float *re, const float *im) {
  uint32_t a = k % half, b = (half - k) % half;
  float even_re = 0.5f * (re[a] + re[b]), even_im = 0.5f * (im[a] - im[b]);
  float odd_re = 0.5f * (im[a] + im[b]), odd_im = 0.5f * (re[b] - re[a]);
  float x = even_re + (c * odd_re + s * odd_im), y = even_im + (c * odd_im - s * odd_re);
  return x * x + y * y;
}

static void add_to_triangles(float x, float at, uint32_t mels, float *energy) {
  if (!(at > 0.0f && at < (float)(mels + 1))) return;
  uint32_t b = (uint32_t)at;
  float rise = at - (float)b;
  if (b < mels) energy[b] = energy[b] + rise * x;
  if (b > 0) energy[b - 1] = energy[b - 1] + (1.0f - rise) * x;
}

void ft_audio_frame(const ft_audio *audio, const float *tables, const float *samples,
                    float *scratch, float *frame) {
  uint32_t half = transform(audio) / 2, bins = half + 1, mels = audio->mels;
  const float *cosine = tables + audio->window, *sine = cosine + bins, *position = sine + bins;
  const float *dct = position + bins;
  float *re = scratch, *im = re + half, *energy = audio->coefficients ? im + half : frame;
  load(audio, tables, samples, half, re, im);
  butterflies(half, cosine, sine, re, im);
  for (uint32_t m = 0; m < mels; m++) energy[m] = 0.0f;
  for (uint32_t k = 0; k < bins; k++) {
    add_to_triangles(power(k, half, cosine[k], sine[k], re, im), position[k], mels, energy);
  }
  for (uint32_t m = 0; m < mels; m++) energy[m] = logarithm(energy[m] + 1e-6f);
  for (uint32_t c = 0; c < audio->coefficients; c++) {
    float sum = 0.0f;
    for (uint32_t m = 0; m < mels; m++) sum = sum + dct[c * mels + m] * energy[m];
    frame[c] = sum;
  }
}
