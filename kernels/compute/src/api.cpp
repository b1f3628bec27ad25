// The C interface: plain functions over raw pointers, called through ctypes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "threads.h"

#if defined(_WIN32)
#define JG_API extern "C" __declspec(dllexport)
#else
#define JG_API extern "C" __attribute__((visibility("default")))
#endif

namespace {

const jg::Table* const kTables[] = {
#if defined(__x86_64__)
    &jg::avx512_table, &jg::avx2_table,
#elif defined(__aarch64__)
    &jg::neon_table,
#endif
    &jg::portable_table};

bool supported(const jg::Table* table) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (table == &jg::avx512_table)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  if (table == &jg::avx2_table)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#endif
  return true;
}

const jg::Table* best() {
  for (const jg::Table* table : kTables)
    if (supported(table)) return table;
  return &jg::portable_table;
}

const jg::Table*& table() {
  static const jg::Table* chosen = best();
  return chosen;
}

// Rounded activations of the calling thread's current product; kept, because every product needs them.
template <typename Value>
struct Scratch {
  std::vector<Value> values;
  std::vector<float> scales;
  std::vector<int32_t> starts;
};

template <typename Value, typename Row>
jg::Activations<Value> quantize(const float* x, int64_t rows, int64_t columns, Row quantize_row) {
  static thread_local Scratch<Value> scratch;
  const int64_t groups = columns / jg::kGroup;
  if (int64_t(scratch.values.size()) < rows * columns) {
    scratch.values.resize(rows * columns);
    scratch.scales.resize(rows * groups);
    scratch.starts.resize(rows * groups);
  }
  Scratch<Value>* const s = &scratch;
  jg::for_each(rows, 8, [=](int64_t m) {
    quantize_row(x + m * columns, columns, s->values.data() + m * columns, s->scales.data() + m * groups,
                 s->starts.data() + m * groups);
  });
  return {scratch.values.data(), scratch.scales.data(), scratch.starts.data(), columns};
}

// Rows of tiles that one piece of work takes: enough to use a few rows of activations from the first cache many
// times, and few enough to stay in the second one themselves.
constexpr int64_t kPanel = 8;

template <typename Value, typename Row, typename Product>
void product(const float* x, int64_t m, const uint8_t* tiles, int64_t rows, int64_t columns, int tile_bytes, float* y,
             Row quantize_row, Product some_tiles) {
  const jg::Activations<Value> activations = quantize<Value>(x, m, columns, quantize_row);
  const int64_t tile_rows = rows / jg::kTileRows, bytes = columns / jg::kGroup * tile_bytes;
  const int64_t panels = (tile_rows + kPanel - 1) / kPanel;
  jg::for_each(panels, panels / (jg::thread_count() * 8), [=, &activations](int64_t panel) {
    const int64_t first = panel * kPanel;
    some_tiles(tiles + first * bytes, std::min(kPanel, tile_rows - first), activations, m, y + first * jg::kTileRows, rows);
  });
}

// float32 to bf16, to the nearest, as torch does.
uint16_t rounded(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return f != f ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// One row of a cache, see jg::Stored.
void store_row(jg::Stored stored, const float* x, int64_t width, uint8_t* to) {
  if (stored == jg::Stored::kBf16) {
    for (int64_t i = 0; i < width; i++) {
      const uint16_t value = rounded(x[i]);
      std::memcpy(to + 2 * i, &value, 2);
    }
    return;
  }
  float biggest = 0;
  for (int64_t i = 0; i < width; i++) biggest = std::max(biggest, std::fabs(x[i]));
  const float scale = biggest / 127.0f, inverse = biggest > 0 ? 127.0f / biggest : 0.0f;
  for (int64_t i = 0; i < width; i++) to[i] = uint8_t(int8_t(std::nearbyint(x[i] * inverse)));
  std::memcpy(to + width, &scale, 4);
}

// Puts a new token's key and value into its cache.
void store(const jg::Attention& a, const jg::AttendRow& row) {
  if (!row.key) return;
  for (int64_t h = 0; h < a.kv_heads; h++) {
    const int64_t to = h * row.head_stride + row.place * jg::stored_bytes(a.stored, a.width);
    store_row(a.stored, row.key + h * a.width, a.width, row.keys + to);
    store_row(a.stored, row.value + h * a.width, a.width, row.values + to);
  }
}

// Some rows of one sequence and some heads of one kv head; how many scores they have.
struct Piece {
  int64_t row, rows, head, heads, scores;
};

// As many queries as share keys and values go together; but no fewer pieces than there are threads, if that can be.
std::vector<Piece> cut(const jg::Attention& a, const jg::AttendRow* rows, int64_t count) {
  const int64_t group = a.heads / a.kv_heads, threads = jg::thread_count(), most = jg::kMostVectors;
  const int64_t splits = std::max((group + most - 1) / most, std::min(group, (threads - 1) / (count * a.kv_heads) + 1));
  const int64_t together = most / ((group + splits - 1) / splits);
  std::vector<Piece> pieces;
  for (int64_t r = 0, n; r < count; r += n) {
    int64_t first = rows[r].first, last = rows[r].last;
    for (n = 1; r + n < count && n < together && rows[r + n].keys == rows[r].keys; n++) {
      first = std::min(first, rows[r + n].first);
      last = std::max(last, rows[r + n].last);
    }
    for (int64_t kv = 0; kv < a.kv_heads; kv++)
      for (int64_t split = 0; split < splits; split++) {
        const int64_t from = group * split / splits, to = group * (split + 1) / splits;
        pieces.push_back({r, n, kv * group + from, to - from, n * (to - from) * (last - first + 1)});
      }
  }
  return pieces;
}

// Splits [0, count) into pieces of a size that is worth handing to another thread.
template <typename Piece>
void for_pieces(int64_t count, const Piece& piece) {
  constexpr int64_t kPiece = 8192;
  jg::for_each((count + kPiece - 1) / kPiece, 1, [=](int64_t i) {
    const int64_t first = i * kPiece;
    piece(first, std::min(kPiece, count - first));
  });
}

}  // namespace

// The instruction set in use; `name` chooses another one (nullptr: only ask). Returns nullptr if it is not to be had.
JG_API const char* jg_isa(const char* name) {
  if (!name) return table()->name;
  for (const jg::Table* candidate : kTables)
    if (!std::strcmp(candidate->name, name) && supported(candidate)) return (table() = candidate)->name;
  return nullptr;
}

JG_API void jg_use_threads(int count) { jg::use_threads(count); }
JG_API int jg_threads() { return jg::thread_count(); }

// y [m, rows] = x [m, columns] @ W.T, W in tiles of `bits` 4 or 8.
JG_API void jg_product(int bits, const float* x, int64_t m, const uint8_t* tiles, int64_t rows, int64_t columns, float* y) {
  const jg::Table* const t = table();
  if (bits == 4)
    product<int8_t>(x, m, tiles, rows, columns, jg::kInt4Tile, y, t->quantize_int8, t->int4_tiles);
  else
    product<int16_t>(x, m, tiles, rows, columns, jg::kInt8Tile, y, t->quantize_int16, t->int8_tiles);
}

// Rows of x [rows, width]; weight [width] and residual [rows, width] may be null.
JG_API void jg_rms_norm(const float* x, const float* weight, const float* residual, float* out, int64_t rows,
                        int64_t width, float eps) {
  // A piece is worth handing to another thread from about 16,000 values on.
  jg::for_each(rows, 16384 / width + 1, [=](int64_t r) {
    table()->rms_norm_row(x + r * width, weight, residual ? residual + r * width : nullptr, out + r * width, width, eps);
  });
}

JG_API void jg_softcap(float* x, float cap, int64_t count) {
  for_pieces(count, [=](int64_t first, int64_t length) { table()->softcap(x + first, cap, length); });
}

JG_API void jg_gated_gelu(const float* gate, const float* up, float* out, int64_t count) {
  for_pieces(count, [=](int64_t first, int64_t length) {
    table()->gated_gelu(gate + first, up + first, out + first, length);
  });
}

// Attention of some tokens, of one sequence or of many: first each is stored (in `bits` 8 or 16), then each looks at its
// cache.
JG_API void jg_attend(const jg::AttendRow* rows, int64_t count, int64_t heads, int64_t kv_heads, int64_t width, int bits,
                      float scale) {
  const jg::Attention a = {heads, kv_heads, width, scale, bits == 8 ? jg::Stored::kInt8 : jg::Stored::kBf16};
  jg::for_each(count, 16384 / (kv_heads * width) + 1, [=](int64_t r) { store(a, rows[r]); });
  const std::vector<Piece> pieces = cut(a, rows, count);
  int64_t seen = 0;
  for (int64_t r = 0; r < count; r++) seen += rows[r].last - rows[r].first + 1;
  // A run of pieces is worth handing to another thread from about 65,000 values on.
  const int64_t values = seen * heads * width / int64_t(pieces.size()) + 1;
  jg::for_each(int64_t(pieces.size()), 65536 / values + 1, [&](int64_t i) {
    static thread_local std::vector<float> scores;
    const Piece& piece = pieces[i];
    if (int64_t(scores.size()) < piece.scores) scores.resize(piece.scores);
    table()->attend(a, rows + piece.row, piece.rows, piece.head, piece.heads, scores.data());
  });
}
