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
INLINE float write_fp32(float x, uint32_t random) { return (void)random, x; }

#define LOOP(BODY)                                                                             \
  _Pragma("omp parallel for schedule(static) num_threads(threads) if (count > BLOCK)")         \
  for (int64_t start = 0; start < count; start += BLOCK) {                                     \
    const int64_t end = start + BLOCK < count ? start + BLOCK : count;                         \
    _Pragma("GCC ivdep") for (int64_t i = start; i < end; i++) BODY                            \
  }

#define UPDATES(NAME, STATE, READ, WRITE)                                                      \
  void convoy_sgd_##NAME(                                                                      \
      uint16_t *weights, const uint16_t *grads, STATE *moments, int64_t count, struct sgd by,  \
      int nesterov, struct keys keys, int threads) {                                           \
    const float ahead = nesterov ? by.momentum : 1.0f, now = nesterov ? 1.0f : 0.0f;           \
    LOOP({                                                                                     \
      const float weight = from_bf16(weights[i]);                                              \
      const float grad = from_bf16(grads[i]) + by.decay * weight;                              \
      const float moment = by.momentum * READ(moments[i]) + grad;                              \
      moments[i] = WRITE(moment, random_bits(keys.first, (uint32_t)i));                        \
      const float step = now * grad + ahead * moment;                                          \
      weights[i] = to_bf16(weight - by.lr * step, random_bits(keys.weights, (uint32_t)i));     \
    })                                                                                         \
  }                                                                                            \
                                                                                               \
  void convoy_adamw_##NAME(                                                                    \
      uint16_t *weights, const uint16_t *grads, STATE *firsts, STATE *seconds, int64_t count,  \
      struct adamw by, struct keys keys, int threads) {                                        \
    const float of_first = by.lr / by.first_correction;                                        \
    const float of_second = 1.0f / sqrtf(by.second_correction);                                \
    LOOP({                                                                                     \
      const float grad = from_bf16(grads[i]);                                                  \
      const float weight = from_bf16(weights[i]) * (1.0f - by.lr * by.decay);                  \
      const float first = by.beta1 * READ(firsts[i]) + (1.0f - by.beta1) * grad;               \
      const float second = by.beta2 * READ(seconds[i]) + (1.0f - by.beta2) * grad * grad;      \
      firsts[i] = WRITE(first, random_bits(keys.first, (uint32_t)i));                          \
      seconds[i] = WRITE(second, random_bits(keys.second, (uint32_t)i));                       \
      const float step = of_first * first / (sqrtf(second) * of_second + by.eps);              \
      weights[i] = to_bf16(weight - step, random_bits(keys.weights, (uint32_t)i));             \
    })                                                                                         \
  }

UPDATES(fp32, float, read_fp32, write_fp32)
UPDATES(bf16, uint16_t, from_bf16, to_bf16)

/* Without momentum, and so without a state. */
void convoy_sgd_plain(
    uint16_t *weights, const uint16_t *grads, int64_t count, struct sgd by, struct keys keys, int threads) {
  LOOP({
    const float weight = from_bf16(weights[i]);
    const float step = from_bf16(grads[i]) + by.decay * weight;
    weights[i] = to_bf16(weight - by.lr * step, random_bits(keys.weights, (uint32_t)i));
  })
}
