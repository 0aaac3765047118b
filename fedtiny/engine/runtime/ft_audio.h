/* ft_audio.h: from sound to log-mel energies or MFCC, one frame at a time.
 *
 * A frame is weighted by a Hann window, padded with zeros to the next power of two and transformed
 * (radix 2, decimation in time). Its power is summed into triangles that are even on the mel scale,
 * ln(1 + Hz / 700), then comes log(energy + 1e-6), and for an MFCC the orthonormal DCT-II.
 * All of it is canonical float32 (ft_runtime.h): every sum is sequential, in ascending order.
 * fedtiny/data/audio.py is the other text of the same functions, with the same bits.
 */
#ifndef FT_AUDIO_H
#define FT_AUDIO_H

#include <stddef.h>
#include <stdint.h>

#define FT_AUDIO_MAX_WINDOW 8192u
#define FT_AUDIO_MAX_MELS 256u

typedef struct {
  uint32_t rate_hz;
  uint32_t window;       /* samples of a frame */
  uint32_t mels;
  uint32_t coefficients; /* of the DCT; 0: the frame is the log-mel energies themselves */
  float low_hz, high_hz; /* the outer feet of the first and of the last triangle */
} ft_audio;

/* Floats of the tables, of the scratch and of a frame; 0 tables for figures that are impossible. */
size_t ft_audio_table_floats(const ft_audio *audio);
size_t ft_audio_scratch_floats(const ft_audio *audio);
size_t ft_audio_frame_floats(const ft_audio *audio);

/* Fills the tables, once for all frames. 0 if a triangle holds no bin of the transform. */
int ft_audio_tables(const ft_audio *audio, float *tables);

/* One frame from `window` samples in [-1, 1]. */
void ft_audio_frame(const ft_audio *audio, const float *tables, const float *samples,
                    float *scratch, float *frame);

#endif
