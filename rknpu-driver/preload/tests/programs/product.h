/* An int8 matrix product of 4 × 64 by 64 × 64 with int32 results: operands, layouts, the stream, and the check. */
#ifndef PRODUCT_H
#define PRODUCT_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 4, INNER = 64, OUTPUTS = 64 };
enum { INPUT_BYTES = ROWS * INNER, WEIGHT_BYTES = OUTPUTS * INNER, OUTPUT_BYTES = ROWS * OUTPUTS * 4 };
enum { FEATURE_BASE = 0x1070, WEIGHT_BASE = 0x1110, OUTPUT_BASE = 0x4020 };

static const uint64_t STREAM[] = {
#include "stream.inc"
};
enum { STREAM_WORDS = sizeof STREAM / 8, TAIL_WORDS = 4 };

/* Ends the program where something is not as it must be. */
#define MUST(condition)                                                                              \
  do {                                                                                               \
    if (!(condition)) {                                                                              \
      fprintf(stderr, "%s:%d: not so: %s (errno %s)\n", __FILE__, __LINE__, #condition, strerror(errno)); \
      exit(1);                                                                                       \
    }                                                                                                \
  } while (0)

/* A call that must fail with this errno. */
#define FAILS(call, wanted)                                                                          \
  do {                                                                                               \
    errno = 0;                                                                                       \
    MUST((call) < 0 && errno == (wanted));                                                           \
  } while (0)

static int input_value(int m, int k) { return (m * 31 + k * 7 + 3) % 255 - 127; }
static int weight_value(int n, int k) { return (n * 13 + k * 29 + 5) % 255 - 127; }

/* [inner / 16][rows][16] */
static void pack_input(int8_t *to) {
  for (int m = 0; m < ROWS; m++)
    for (int k = 0; k < INNER; k++) to[(k / 16 * ROWS + m) * 16 + k % 16] = (int8_t)input_value(m, k);
}

/* [outputs / 32][inner / 32][32][32] */
static void pack_weights(int8_t *to) {
  for (int n = 0; n < OUTPUTS; n++)
    for (int k = 0; k < INNER; k++)
      to[((n / 32 * (INNER / 32) + k / 32) * 32 + n % 32) * 32 + k % 32] = (int8_t)weight_value(n, k);
}

/* The stream with its three addresses. */
static void pack_stream(uint64_t *to, uint32_t input, uint32_t weights, uint32_t output) {
  for (int i = 0; i < STREAM_WORDS; i++) {
    uint64_t word = STREAM[i];
    switch (word & 0xffff) {
    case FEATURE_BASE: word |= (uint64_t)input << 16; break;
    case WEIGHT_BASE: word |= (uint64_t)weights << 16; break;
    case OUTPUT_BASE: word |= (uint64_t)output << 16; break;
    }
    to[i] = word;
  }
}

/* [outputs / 4][rows][4]; the number of results that are wrong. */
static int wrong_results(const int32_t *from) {
  int wrong = 0;
  for (int m = 0; m < ROWS; m++)
    for (int n = 0; n < OUTPUTS; n++) {
      int32_t sum = 0;
      for (int k = 0; k < INNER; k++) sum += input_value(m, k) * weight_value(n, k);
      wrong += from[(n / 4 * ROWS + m) * 4 + n % 4] != sum;
    }
  return wrong;
}

#endif
