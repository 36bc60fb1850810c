/* Steps of optimizers whose weights and gradients are in bf16, without an fp32 copy: each number is read once, updated in
   fp32 and rounded stochastically. The optimizer's state is fp32, or bf16 that is rounded stochastically as well.

   Formulas: kernels/bf16_updates.py, which has the same in torch. */

#include <math.h>

#include "rounding.h"

struct sgd {
  float lr, momentum, decay;
};

struct adamw {
  float lr, beta1, beta2, eps, decay, first_correction, second_correction; /* corrections: 1 - beta^t */
};

/* One key for the weights, and one for each buffer of the state. */
struct keys {
  struct key weights, first, second;
};

INLINE float read_fp32(float x) { return x; }
INLINE float write_fp32(float x, uint16_t random) { return (void)random, x; }
INLINE void fill_none(union halves *random, struct key key, int64_t start, int count) {
  (void)random, (void)key, (void)start, (void)count;
}

#define UPDATES(NAME, STATE, READ, WRITE, FILL)                                                \
  INLINE void sgd_piece_##NAME(                                                                \
      uint16_t *weights, const uint16_t *grads, STATE *moments, int64_t start, int count,      \
      struct sgd by, int nesterov, struct keys keys) {                                         \
    const float ahead = nesterov ? by.momentum : 1.0f, now = nesterov ? 1.0f : 0.0f;           \
    union halves of_weights, of_moments;                                                       \
    fill(&of_weights, keys.weights, start, count);                                             \
    FILL(&of_moments, keys.first, start, count);                                               \
    fetch(weights, 2 * PIECE);                                                                 \
    fetch(grads, 2 * PIECE);                                                                   \
    fetch(moments, (int)sizeof(STATE) * PIECE);                                                \
    _Pragma("GCC ivdep") for (int i = 0; i < count; i++) {                                     \
      const float weight = from_bf16(weights[i]);                                              \
      const float grad = from_bf16(grads[i]) + by.decay * weight;                              \
      const float moment = by.momentum * READ(moments[i]) + grad;                              \
      moments[i] = WRITE(moment, of_moments.of[i]);                                            \
      const float step = now * grad + ahead * moment;                                          \
      weights[i] = to_bf16(weight - by.lr * step, of_weights.of[i]);                           \
    }                                                                                          \
  }                                                                                            \
                                                                                               \
  void convoy_sgd_##NAME(                                                                      \
      uint16_t *weights, const uint16_t *grads, STATE *moments, int64_t count, struct sgd by,  \
      int nesterov, struct keys keys, int threads) {                                           \
    IN_PIECES(sgd_piece_##NAME(                                                                \
        weights + start, grads + start, moments + start, start, here, by, nesterov, keys))     \
  }                                                                                            \
                                                                                               \
  INLINE void adamw_piece_##NAME(                                                              \
      uint16_t *weights, const uint16_t *grads, STATE *firsts, STATE *seconds, int64_t start,  \
      int count, struct adamw by, struct keys keys) {                                          \
    const float of_first = by.lr / by.first_correction, kept = 1.0f - by.lr * by.decay;        \
    const float of_second = 1.0f / sqrtf(by.second_correction);                                \
    union halves of_weights, of_firsts, of_seconds;                                            \
    fill(&of_weights, keys.weights, start, count);                                             \
    FILL(&of_firsts, keys.first, start, count);                                                \
    FILL(&of_seconds, keys.second, start, count);                                              \
    fetch(weights, 2 * PIECE);                                                                 \
    fetch(grads, 2 * PIECE);                                                                   \
    fetch(firsts, (int)sizeof(STATE) * PIECE);                                                 \
    fetch(seconds, (int)sizeof(STATE) * PIECE);                                                \
    _Pragma("GCC ivdep") for (int i = 0; i < count; i++) {                                     \
      const float grad = from_bf16(grads[i]);                                                  \
      const float first = by.beta1 * READ(firsts[i]) + (1.0f - by.beta1) * grad;               \
      const float second = by.beta2 * READ(seconds[i]) + (1.0f - by.beta2) * grad * grad;      \
      firsts[i] = WRITE(first, of_firsts.of[i]);                                               \
      seconds[i] = WRITE(second, of_seconds.of[i]);                                            \
      const float step = of_first * first / (sqrtf(second) * of_second + by.eps);              \
      weights[i] = to_bf16(from_bf16(weights[i]) * kept - step, of_weights.of[i]);             \
    }                                                                                          \
  }                                                                                            \
                                                                                               \
  void convoy_adamw_##NAME(                                                                    \
      uint16_t *weights, const uint16_t *grads, STATE *firsts, STATE *seconds, int64_t count,  \
      struct adamw by, struct keys keys, int threads) {                                        \
    IN_PIECES(adamw_piece_##NAME(                                                              \
        weights + start, grads + start, firsts + start, seconds + start, start, here, by, keys)) \
  }

UPDATES(fp32, float, read_fp32, write_fp32, fill_none)
UPDATES(bf16, uint16_t, from_bf16, to_bf16, fill)

/* Without momentum, and so without a state. */
INLINE void plain_piece(
    uint16_t *weights, const uint16_t *grads, int64_t start, int count, struct sgd by, struct key key) {
  union halves random;
  fill(&random, key, start, count);
  fetch(weights, 2 * PIECE);
  fetch(grads, 2 * PIECE);
#pragma GCC ivdep
  for (int i = 0; i < count; i++) {
    const float weight = from_bf16(weights[i]);
    const float step = from_bf16(grads[i]) + by.decay * weight;
    weights[i] = to_bf16(weight - by.lr * step, random.of[i]);
  }
}

void convoy_sgd_plain(
    uint16_t *weights, const uint16_t *grads, int64_t count, struct sgd by, struct keys keys, int threads) {
  IN_PIECES(plain_piece(weights + start, grads + start, start, here, by, keys.weights))
}
