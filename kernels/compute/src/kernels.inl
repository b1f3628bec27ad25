// The kernels, written once over a handful of vector primitives. A file for one instruction set defines
// `struct Isa` in an anonymous namespace and includes this:
//
//   kLanes                     outputs in one vector; a tile of 16 rows is 16 / kLanes parts
//   kFewRows, kManyRows        rows of activations that share one pass over tiles: where there are no more, and else
//   kSums                      vectors of sums that its registers hold beside all else
//   kQueries                   queries that share what is read of keys and values, at least 2
//   Float                      vector of kLanes float32
//   zero(), set(f), load_floats(p), store(p, v), add, mul, div, fma(a, b, c) = a * b + c, sum(v), exp(v)
//   half(p), bf16(p), int8(p)  read kLanes fp16 / bf16 / int8
//   Weights, Sum               4 inputs for each output, in bytes; what their products are added up in
//   low_nibbles(p), high_nibbles(p)      one half of 4 bytes for each output, with kBias added to every weight
//   four(x), dot(sum, w, x)    4 int8 activations for every output; sum + w . x
//   start(s), total(sum, s)    begin and end of such a Sum, which together add s
//   even(p), odd(p)            inputs 0 and 2, or 1 and 3, of 4 signed bytes for each output, as words
//   two(x), dot_words(sum, w, x)         2 int16 activations for every output; sum + w . x
//   none(), words_total(sum)   begin and end of such a Sum
//   quantize(x, values) -> {scale, sum}   one group of 32 floats
#include <cmath>

#if defined(__clang__)
#define JG_UNROLL _Pragma("clang loop unroll(full)")
#define JG_KEEP _Pragma("clang loop unroll(disable)")
#else
#define JG_UNROLL _Pragma("GCC unroll 16")
#define JG_KEEP _Pragma("GCC unroll 1")
#endif
// The steps through a tile stay a loop: unrolled, compilers load far ahead and spill the sums, but with 32 registers.
#if defined(__AVX512F__)
#define JG_STEPS JG_UNROLL
#else
#define JG_STEPS JG_KEEP
#endif

namespace {

constexpr int kParts = jg::kTileRows / Isa::kLanes;

inline void prefetch_tile(const uint8_t* tile, int bytes) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(tile + 8 * bytes + line);
}

// Weights in four bits: nibbles, with kBias added, times int8.
struct Int4 {
  using Value = int8_t;
  static constexpr int kBytes = jg::kInt4Tile;
  static constexpr int kSteps = 4;

  // Adds the products of the 8 inputs that 64 bytes of each tile hold, from 64 * j on.
  template <int MB, int N>
  static void add_dots(const uint8_t* const (&at)[N], int j, const Value* const (&x)[MB],
                       typename Isa::Sum (&sums)[MB][N]) {
    typename Isa::Weights w[N];
    JG_UNROLL
    for (int n = 0; n < N; n++) w[n] = Isa::low_nibbles(at[n] + 64 * j);
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const auto inputs = Isa::four(x[m] + 4 * j);
      JG_UNROLL
      for (int n = 0; n < N; n++) sums[m][n] = Isa::dot(sums[m][n], w[n], inputs);
    }
    JG_UNROLL
    for (int n = 0; n < N; n++) w[n] = Isa::high_nibbles(at[n] + 64 * j);
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const auto inputs = Isa::four(x[m] + 16 + 4 * j);
      JG_UNROLL
      for (int n = 0; n < N; n++) sums[m][n] = Isa::dot(sums[m][n], w[n], inputs);
    }
  }

  static typename Isa::Sum start(int32_t start) { return Isa::start(start); }
  static typename Isa::Float total(typename Isa::Sum sum, int32_t start) { return Isa::total(sum, start); }
};

// Weights in eight bits, times int16.
struct Int8 {
  using Value = int16_t;
  static constexpr int kBytes = jg::kInt8Tile;
  static constexpr int kSteps = 8;

  template <int MB, int N>
  static void add_dots(const uint8_t* const (&at)[N], int j, const Value* const (&x)[MB],
                       typename Isa::Sum (&sums)[MB][N]) {
    typename Isa::Weights even[N], odd[N];
    JG_UNROLL
    for (int n = 0; n < N; n++) {
      even[n] = Isa::even(at[n] + 64 * j);
      odd[n] = Isa::odd(at[n] + 64 * j);
    }
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const auto first = Isa::two(x[m] + 4 * j), second = Isa::two(x[m] + 4 * j + 2);
      JG_UNROLL
      for (int n = 0; n < N; n++)
        sums[m][n] = Isa::dot_words(Isa::dot_words(sums[m][n], even[n], first), odd[n], second);
    }
  }

  static typename Isa::Sum start(int32_t) { return Isa::none(); }
  static typename Isa::Float total(typename Isa::Sum sum, int32_t) { return Isa::words_total(sum); }
};

// MB rows of activations, from row `first` on, with T rows of tiles, each `bytes` long.
template <typename Kind, int MB, int T>
void block(const uint8_t* tiles, int64_t bytes, const jg::Activations<typename Kind::Value>& a, int64_t first, float* y,
           int64_t ldy) {
  constexpr int N = T * kParts;  // vectors of outputs
  const int64_t groups = a.columns / jg::kGroup;
  typename Isa::Float acc[MB][N];
  for (int m = 0; m < MB; m++)
    for (int n = 0; n < N; n++) acc[m][n] = Isa::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* at[N];
    JG_UNROLL
    for (int n = 0; n < N; n++) at[n] = tiles + n / kParts * bytes + g * Kind::kBytes + 64 / kParts * (n % kParts);
    JG_UNROLL
    for (int t = 0; t < T; t++) prefetch_tile(at[t * kParts], Kind::kBytes);
    const typename Kind::Value* x[MB];
    typename Isa::Sum sums[MB][N];
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      x[m] = a.values + ((first + m) * groups + g) * jg::kGroup;
      JG_UNROLL
      for (int n = 0; n < N; n++) sums[m][n] = Kind::start(a.starts[(first + m) * groups + g]);
    }
    JG_STEPS
    for (int j = 0; j < Kind::kSteps; j++) Kind::template add_dots<MB, N>(at, j, x, sums);
    typename Isa::Float weight_scale[N];
    JG_UNROLL
    for (int n = 0; n < N; n++) {
      const uint8_t* scales = at[n / kParts * kParts] + 64 * Kind::kSteps;
      weight_scale[n] = Isa::half(scales + 2 * Isa::kLanes * (n % kParts));
    }
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const int64_t row = (first + m) * groups + g;
      const auto scale = Isa::set(a.scales[row]);
      JG_UNROLL
      for (int n = 0; n < N; n++)
        acc[m][n] = Isa::fma(Isa::mul(Kind::total(sums[m][n], a.starts[row]), scale), weight_scale[n], acc[m][n]);
    }
  }
  for (int m = 0; m < MB; m++)
    for (int n = 0; n < N; n++) Isa::store(y + (first + m) * ldy + n * Isa::kLanes, acc[m][n]);
}

// Some rows of tiles with up to MB rows of activations, from row `first` of `count` on.
template <typename Kind, int MB>
void rows_of(const uint8_t* tiles, int64_t tile_rows, const jg::Activations<typename Kind::Value>& a, int64_t first,
             int64_t count, float* y, int64_t ldy) {
  if constexpr (MB > 1)
    if (count - first < MB) return rows_of<Kind, MB - 1>(tiles, tile_rows, a, first, count, y, ldy);
  // An activation that is loaded serves two rows of tiles, where their sums fit into the registers.
  constexpr int T = 2 * MB * kParts <= Isa::kSums ? 2 : 1;
  const int64_t bytes = a.columns / jg::kGroup * Kind::kBytes;
  int64_t t = 0;
  for (; t + T <= tile_rows; t += T)
    block<Kind, MB, T>(tiles + t * bytes, bytes, a, first, y + t * jg::kTileRows, ldy);
  if (t < tile_rows) block<Kind, MB, 1>(tiles + t * bytes, bytes, a, first, y + t * jg::kTileRows, ldy);
}

// All rows of activations, a few of them at a time, which stay in the first cache.
template <typename Kind>
void product(const uint8_t* tiles, int64_t tile_rows, const jg::Activations<typename Kind::Value>& a, int64_t rows,
             float* y, int64_t ldy) {
  // Few rows are to need one pass over the weights. Where they need several, what counts is arithmetic.
  if (rows <= Isa::kFewRows) return rows_of<Kind, Isa::kFewRows>(tiles, tile_rows, a, 0, rows, y, ldy);
  for (int64_t m = 0; m < rows; m += Isa::kManyRows)
    rows_of<Kind, Isa::kManyRows>(tiles, tile_rows, a, m, rows, y, ldy);
}

void int4_tiles(const uint8_t* tiles, int64_t tile_rows, const jg::Activations<int8_t>& x, int64_t rows, float* y,
                int64_t ldy) {
  product<Int4>(tiles, tile_rows, x, rows, y, ldy);
}

void int8_tiles(const uint8_t* tiles, int64_t tile_rows, const jg::Activations<int16_t>& x, int64_t rows, float* y,
                int64_t ldy) {
  product<Int8>(tiles, tile_rows, x, rows, y, ldy);
}

void quantize_int8(const float* x, int64_t columns, int8_t* values, float* scales, int32_t* starts) {
  for (int64_t g = 0; g < columns / jg::kGroup; g++) {
    const auto found = Isa::quantize(x + g * jg::kGroup, values + g * jg::kGroup);
    scales[g] = found.scale;
    starts[g] = -Isa::kBias * found.sum;
  }
}

void quantize_int16(const float* x, int64_t columns, int16_t* values, float* scales, int32_t* starts) {
  constexpr int kOrder[] = {0, 2, 1, 3};
  for (int64_t g = 0; g < columns / jg::kGroup; g++, x += jg::kGroup) {
    float biggest = 0;
    for (int i = 0; i < jg::kGroup; i++) biggest = std::fmax(biggest, std::fabs(x[i]));
    const float inverse = biggest > 0 ? 32767.0f / biggest : 0.0f;
    for (int i = 0; i < jg::kGroup; i++)
      *values++ = int16_t(std::nearbyint(x[i - i % 4 + kOrder[i % 4]] * inverse));
    scales[g] = biggest / 32767.0f;
    starts[g] = 0;
  }
}

void rms_norm_row(const float* x, const float* weight, const float* residual, float* out, int64_t width, float eps) {
  typename Isa::Float squares = Isa::zero();
  int64_t i = 0;
  for (; i + Isa::kLanes <= width; i += Isa::kLanes)
    squares = Isa::fma(Isa::load_floats(x + i), Isa::load_floats(x + i), squares);
  float total = Isa::sum(squares);
  for (; i < width; i++) total += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(total / float(width) + eps);
  for (i = 0; i + Isa::kLanes <= width; i += Isa::kLanes) {
    auto value = Isa::mul(Isa::load_floats(x + i), Isa::set(factor));
    if (weight) value = Isa::mul(value, Isa::load_floats(weight + i));
    if (residual) value = Isa::add(value, Isa::load_floats(residual + i));
    Isa::store(out + i, value);
  }
  for (; i < width; i++) out[i] = x[i] * factor * (weight ? weight[i] : 1.0f) + (residual ? residual[i] : 0.0f);
}

// tanh(u) = 1 - 2 / (exp(2u) + 1)
void softcap(float* x, float cap, int64_t count) {
  int64_t i = 0;
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
    const auto power = Isa::exp(Isa::mul(Isa::load_floats(x + i), Isa::set(2.0f / cap)));
    const auto rest = Isa::div(Isa::set(-2.0f * cap), Isa::add(power, Isa::set(1.0f)));
    Isa::store(x + i, Isa::add(Isa::set(cap), rest));
  }
  for (; i < count; i++) x[i] = cap * std::tanh(x[i] / cap);
}

// gelu_tanh(x) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3).
void gated_gelu(const float* gate, const float* up, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
    const Isa::Float x = Isa::load_floats(gate + i);
    const Isa::Float cube = Isa::mul(Isa::mul(x, x), x);
    const Isa::Float u = Isa::mul(Isa::set(-1.5957691216f), Isa::fma(Isa::set(0.044715f), cube, x));
    const Isa::Float gelu = Isa::div(x, Isa::add(Isa::set(1.0f), Isa::exp(u)));
    Isa::store(out + i, Isa::mul(gelu, Isa::load_floats(up + i)));
  }
  for (; i < count; i++) {
    const float x = gate[i];
    out[i] = x / (1.0f + std::exp(-1.5957691216f * (x + 0.044715f * x * x * x))) * up[i];
  }
}

// e^x of all, over their sum.
void softmax(float* row, int64_t count) {
  float peak = row[0], total = 0;
  for (int64_t i = 1; i < count; i++) peak = row[i] > peak ? row[i] : peak;
  int64_t i = 0;
  Isa::Float sums = Isa::zero();
  for (; i + Isa::kLanes <= count; i += Isa::kLanes) {
    const Isa::Float e = Isa::exp(Isa::add(Isa::load_floats(row + i), Isa::set(-peak)));
    Isa::store(row + i, e);
    sums = Isa::add(sums, e);
  }
  for (; i < count; i++) total += row[i] = std::exp(row[i] - peak);
  total = 1 / (total + Isa::sum(sums));
  for (i = 0; i + Isa::kLanes <= count; i += Isa::kLanes)
    Isa::store(row + i, Isa::mul(Isa::load_floats(row + i), Isa::set(total)));
  for (; i < count; i++) row[i] *= total;
}

// The two ways in which a cache stores a row.
struct Bf16 {
  static int64_t bytes(int64_t width) { return jg::stored_bytes(jg::Stored::kBf16, width); }
  static Isa::Float load(const uint8_t* row, int64_t i) { return Isa::bf16((const uint16_t*)row + i); }
  static float scale(const uint8_t*, int64_t) { return 1.0f; }
};

struct Scaled {
  static int64_t bytes(int64_t width) { return jg::stored_bytes(jg::Stored::kInt8, width); }
  static Isa::Float load(const uint8_t* row, int64_t i) { return Isa::int8((const int8_t*)row + i); }
  static float scale(const uint8_t* row, int64_t width) {
    float value;
    __builtin_memcpy(&value, row + width, 4);
    return value;
  }
};

// Queries that look at one kv head of one cache.
struct Look {
  const float* query[jg::kMostVectors];
  float* scores[jg::kMostVectors];  // [positions]
  float* out[jg::kMostVectors];
  const uint8_t *keys, *values;
  int64_t width, positions;
  float scale;
};

// Scores of queries q .. q + Q - 1 at positions p .. p + P - 1: each vector that is read serves all of them.
template <typename Row>
struct Score {
  template <int Q, int P>
  static void run(const Look& a, int64_t q, int64_t p) {
    const int64_t bytes = Row::bytes(a.width);
    Isa::Float sums[Q][P];
    JG_UNROLL
    for (int m = 0; m < Q; m++) {
      JG_UNROLL
      for (int n = 0; n < P; n++) sums[m][n] = Isa::zero();
    }
    for (int64_t i = 0; i < a.width; i += Isa::kLanes) {
      Isa::Float keys[P];
      JG_UNROLL
      for (int n = 0; n < P; n++) keys[n] = Row::load(a.keys + (p + n) * bytes, i);
      JG_UNROLL
      for (int m = 0; m < Q; m++) {
        const Isa::Float query = Isa::load_floats(a.query[q + m] + i);
        JG_UNROLL
        for (int n = 0; n < P; n++) sums[m][n] = Isa::fma(query, keys[n], sums[m][n]);
      }
    }
    for (int n = 0; n < P; n++) {
      const float scale = a.scale * Row::scale(a.keys + (p + n) * bytes, a.width);
      for (int m = 0; m < Q; m++) a.scores[q + m][p + n] = scale * Isa::sum(sums[m][n]);
    }
  }
};

// Adds the values of positions p .. p + P - 1 to what queries q .. q + Q - 1 get, by their weights.
template <typename Row>
struct Mix {
  template <int Q, int P>
  static void run(const Look& a, int64_t q, int64_t p) {
    const int64_t bytes = Row::bytes(a.width);
    Isa::Float weights[Q][P];
    JG_UNROLL
    for (int n = 0; n < P; n++) {
      const float scale = Row::scale(a.values + (p + n) * bytes, a.width);
      JG_UNROLL
      for (int m = 0; m < Q; m++) weights[m][n] = Isa::set(scale * a.scores[q + m][p + n]);
    }
    for (int64_t i = 0; i < a.width; i += Isa::kLanes) {
      Isa::Float values[P];
      JG_UNROLL
      for (int n = 0; n < P; n++) values[n] = Row::load(a.values + (p + n) * bytes, i);
      JG_UNROLL
      for (int m = 0; m < Q; m++) {
        float* out = a.out[q + m] + i;
        Isa::Float sum = Isa::load_floats(out);
        JG_UNROLL
        for (int n = 0; n < P; n++) sum = Isa::fma(weights[m][n], values[n], sum);
        Isa::store(out, sum);
      }
    }
  }
};

// One of both for queries q .. q + Q - 1 and positions from .. to - 1.
template <typename Step, int Q>
void along(const Look& a, int64_t q, int64_t from, int64_t to) {
  int64_t p = from;
  for (; p + 4 <= to; p += 4) Step::template run<Q, 4>(a, q, p);
  for (; p < to; p++) Step::template run<Q, 1>(a, q, p);
}

// One of both for all; some positions at a time, whose keys or values stay in the cache while all queries use them.
template <typename Step>
void across(const Look& a, int64_t queries) {
  constexpr int64_t kPositions = 64;
  for (int64_t from = 0; from < a.positions; from += kPositions) {
    const int64_t to = from + kPositions < a.positions ? from + kPositions : a.positions;
    int64_t q = 0;
    for (; q + Isa::kQueries <= queries; q += Isa::kQueries) along<Step, Isa::kQueries>(a, q, from, to);
    for (; q + 2 <= queries; q += 2) along<Step, 2>(a, q, from, to);
    if (q < queries) along<Step, 1>(a, q, from, to);
  }
}

// Scores of all positions, softmax over those that a row looks at, then the weighted sum of values.
void attend(const jg::Attention& shape, const jg::AttendRow* rows, int64_t count, int64_t head, int64_t heads,
            float* scores) {
  int64_t first = rows[0].first, last = rows[0].last;
  for (int64_t r = 1; r < count; r++) {
    first = rows[r].first < first ? rows[r].first : first;
    last = rows[r].last > last ? rows[r].last : last;
  }
  const int64_t from = head / (shape.heads / shape.kv_heads) * rows[0].head_stride +
                       first * jg::stored_bytes(shape.stored, shape.width);
  Look a;
  a.keys = rows[0].keys + from, a.values = rows[0].values + from;
  a.width = shape.width, a.positions = last - first + 1, a.scale = shape.scale;
  for (int64_t q = 0; q < count * heads; q++) {
    const int64_t at = (head + q % heads) * shape.width;
    a.query[q] = rows[q / heads].query + at;
    a.out[q] = rows[q / heads].out + at;
    a.scores[q] = scores + q * a.positions;
  }
  const bool bf16 = shape.stored == jg::Stored::kBf16;
  bf16 ? across<Score<Bf16>>(a, count * heads) : across<Score<Scaled>>(a, count * heads);
  for (int64_t q = 0; q < count * heads; q++) {
    const int64_t begin = rows[q / heads].first - first, end = rows[q / heads].last - first + 1;
    for (int64_t p = 0; p < begin; p++) a.scores[q][p] = 0;
    softmax(a.scores[q] + begin, end - begin);
    for (int64_t p = end; p < a.positions; p++) a.scores[q][p] = 0;
    for (int64_t i = 0; i < a.width; i++) a.out[q][i] = 0;
  }
  bf16 ? across<Mix<Bf16>>(a, count * heads) : across<Mix<Scaled>>(a, count * heads);
}

}  // namespace

#define JG_TABLE(identifier, text)                                                                       \
  namespace jg {                                                                                         \
  const Table identifier = {text,       quantize_int8, quantize_int16, int4_tiles, int8_tiles, rms_norm_row, \
                            softcap,    gated_gelu,    attend};                                          \
  }
