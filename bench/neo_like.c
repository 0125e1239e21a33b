/* Decode attention in three passes, after the published description of NEO's CPU kernel: scores of
 * all tokens and heads into a buffer, softmax over it, then values, with sums in memory. bfloat16 KV
 * by blocks [16][head_size]. A peer of our own making, not NEO's code. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 16 };

static inline float wide(uint16_t bits) {
  uint32_t word = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

typedef struct {
  const uint16_t *k, *v; /* [blocks][kv_heads][BLOCK][head_size] */
  const int32_t *table;  /* of one row */
  int32_t tokens, kv_heads, group, head_size;
  float scale;
  const float *q; /* [kv_heads * group][head_size] */
  float *o;
  float *scores; /* [kv_heads * group][tokens] */
} neo_row;

static const uint16_t *token_of(const neo_row *x, const uint16_t *side, int32_t head, int32_t t) {
  const size_t tile = (size_t)x->table[t / BLOCK] * (size_t)x->kv_heads + (size_t)head;
  return side + (tile * BLOCK + (size_t)(t % BLOCK)) * (size_t)x->head_size;
}

static void score(const neo_row *x, int32_t head) {
  for (int32_t t = 0; t < x->tokens; t++) {
    const uint16_t *k = token_of(x, x->k, head, t);
    for (int32_t g = 0; g < x->group; g++) {
      const int32_t query = head * x->group + g;
      const float *q = x->q + (size_t)query * (size_t)x->head_size;
      float sum = 0.0f;
      for (int32_t d = 0; d < x->head_size; d++) sum += q[d] * wide(k[d]);
      x->scores[(size_t)query * (size_t)x->tokens + (size_t)t] = sum * x->scale;
    }
  }
}

static void soften(const neo_row *x, int32_t query) {
  float *s = x->scores + (size_t)query * (size_t)x->tokens, high = s[0], sum = 0.0f;
  for (int32_t t = 1; t < x->tokens; t++) high = s[t] > high ? s[t] : high;
  for (int32_t t = 0; t < x->tokens; t++) {
    s[t] = expf(s[t] - high);
    sum += s[t];
  }
  for (int32_t t = 0; t < x->tokens; t++) s[t] /= sum;
}

static void weigh(const neo_row *x, int32_t head) {
  for (int32_t g = 0; g < x->group; g++)
    memset(x->o + (size_t)(head * x->group + g) * (size_t)x->head_size, 0,
           (size_t)x->head_size * sizeof *x->o);
  for (int32_t t = 0; t < x->tokens; t++) {
    const uint16_t *v = token_of(x, x->v, head, t);
    for (int32_t g = 0; g < x->group; g++) {
      const int32_t query = head * x->group + g;
      const float p = x->scores[(size_t)query * (size_t)x->tokens + (size_t)t];
      float *o = x->o + (size_t)query * (size_t)x->head_size;
      for (int32_t d = 0; d < x->head_size; d++) o[d] += p * wide(v[d]);
    }
  }
}

void neo_like(const neo_row *x) {
  for (int32_t head = 0; head < x->kv_heads; head++) score(x, head);
  for (int32_t query = 0; query < x->kv_heads * x->group; query++) soften(x, query);
  for (int32_t head = 0; head < x->kv_heads; head++) weigh(x, head);
}
