// The operations every instruction set implements, and the layouts they share.
//
// int4 tile: 16 output rows x 32 inputs = 288 bytes: 4 vectors of 64 bytes, vector j holding for each row 4
// bytes b: the low nibble is input 4j+b, the high nibble input 16+4j+b, each + 8; then 16 fp16 scales.
// int8 tile: 16 x 32 = 544 bytes: 8 vectors of 64 bytes, vector j holding for each row inputs 4j .. 4j+3; then
// 16 fp16 scales. A matrix [rows, columns] is rows/16 rows of columns/32 tiles.
//
// Activations are rounded in the same groups of 32: to int8 for int4 weights (ggml's Q8_0 rule), to int16 for int8
// weights, which are for models that are to lose nothing. Exact integer arithmetic inside a group, float32 across.
#pragma once
#include <cstdint>

namespace jg {

constexpr int kTileRows = 16;
constexpr int kGroup = 32;
constexpr int kInt4Tile = 288;
constexpr int kInt8Tile = 544;
constexpr int kMostVectors = 32;  // queries that share one pass over keys and values

// Activations [rows, columns] in int8 (Value = int8_t), or in int16 with every four of them in the order 0, 2, 1, 3;
// for each group of 32 its scale and what its dot products start from: minus the sum of its values times what
// unpacking added to every weight.
template <typename Value>
struct Activations {
  const Value* values;
  const float* scales;
  const int32_t* starts;
  int64_t columns;
};

// A new token of one sequence in one layer, and the cache that it looks at.
struct AttendRow {
  const float* query;  // [heads, width]
  const float* key;    // [kv_heads, width]: to be stored at position `place`; null where it is there already
  const float* value;  // like key
  float* out;          // [heads, width]
  uint8_t* keys;       // kv head h begins at h * head_stride bytes and holds [positions, width], see Stored
  uint8_t* values;     // like keys
  int64_t head_stride, place, first, last;  // the token looks at the positions first .. last
};

// How a cache stores the `width` values of a position and head: in bf16, or in int8 with their scale, a float32, behind.
enum class Stored { kBf16, kInt8 };

constexpr int64_t stored_bytes(Stored stored, int64_t width) { return stored == Stored::kBf16 ? 2 * width : width + 4; }

// What all rows of a layer have in common.
struct Attention {
  int64_t heads, kv_heads, width;
  float scale;
  Stored stored;
};

// What one instruction set offers. Every function does one independent piece of work on one thread.
struct Table {
  const char* name;
  // One row of `columns` floats to int8, for int4 weights.
  void (*quantize_int8)(const float* x, int64_t columns, int8_t* values, float* scales, int32_t* starts);
  // The same to int16, for int8 weights.
  void (*quantize_int16)(const float* x, int64_t columns, int16_t* values, float* scales, int32_t* starts);
  // y[m * ldy + r] for `rows` rows m of x and the 16 * tile_rows outputs r of some rows of tiles.
  void (*int4_tiles)(const uint8_t* tiles, int64_t tile_rows, const Activations<int8_t>& x, int64_t rows, float* y,
                     int64_t ldy);
  void (*int8_tiles)(const uint8_t* tiles, int64_t tile_rows, const Activations<int16_t>& x, int64_t rows, float* y,
                     int64_t ldy);
  // out = x / sqrt(mean(x^2) + eps) * weight + residual; weight and residual may be null.
  void (*rms_norm_row)(const float* x, const float* weight, const float* residual, float* out, int64_t width,
                       float eps);
  // x[i] = cap * tanh(x[i] / cap)
  void (*softcap)(float* x, float cap, int64_t count);
  // out[i] = gelu_tanh(gate[i]) * up[i]
  void (*gated_gelu)(const float* gate, const float* up, float* out, int64_t count);
  // Query heads head .. head + heads - 1, which share one kv head, of `count` rows that share one cache; count * heads
  // is at most kMostVectors. `scores` is scratch: for each of them all positions that any row looks at.
  void (*attend)(const Attention& a, const AttendRow* rows, int64_t count, int64_t head, int64_t heads, float* scores);
};

extern const Table portable_table;
#if defined(__x86_64__)
extern const Table avx2_table;
extern const Table avx512_table;
#elif defined(__aarch64__)
extern const Table neon_table;
#endif

}  // namespace jg
