// The kernels, written once over a handful of vector primitives. A file for one instruction set defines
// `struct Isa` in an anonymous namespace and includes this:
//
//   kLanes                     outputs in one vector; a tile of 16 rows is 16 / kLanes parts
//   kBlock                     rows of activations that share one pass over a tile, at most 8
//   Float                      vector of kLanes float32
//   zero(), set(f), load_floats(p), store(p, v), add, mul, div, fma(a, b, c) = a * b + c, sum(v), exp(v)
//   half(p), bf16(p)           read kLanes fp16 / bf16
//   Weights, Sum               4 inputs for each output, in bytes; what their products are added up in
//   low_nibbles(p), high_nibbles(p), bytes(p)   one half of 4 bytes, or all of them, for each output
//   input<b>(w)                input b of 4 signed bytes for each output, as Float
//   four(x)                    4 int8 activations, for every output
//   none(), dot(sum, w, x), total(sum)   an empty Sum; sum + w . x; as Float
//   kBias                      what unpacking nibbles added to every weight
//   quantize(x, values) -> {scale, sum}   one group of 32 floats
#include <cmath>

#if defined(__clang__)
#define JG_UNROLL _Pragma("clang loop unroll(full)")
#define JG_KEEP _Pragma("clang loop unroll(disable)")
#else
#define JG_UNROLL _Pragma("GCC unroll 16")
#define JG_KEEP _Pragma("GCC unroll 1")
#endif

namespace {

constexpr int kParts = jg::kTileRows / Isa::kLanes;

// Adds the products of 4 inputs: MB rows of activations with the 16 rows of a tile.
template <int MB>
inline void add_dots(const typename Isa::Weights (&w)[kParts], const int8_t* const (&x)[MB], int64_t offset,
                     typename Isa::Sum (&sums)[MB][kParts]) {
  JG_UNROLL
  for (int m = 0; m < MB; m++) {
    const auto inputs = Isa::four(x[m] + offset);
    JG_UNROLL
    for (int p = 0; p < kParts; p++) sums[m][p] = Isa::dot(sums[m][p], w[p], inputs);
  }
}

// The dot products of one group.
template <int MB>
inline void group_sums(const uint8_t* tile, const int8_t* const (&x)[MB], typename Isa::Sum (&sums)[MB][kParts]) {
  // Left a loop: unrolled, compilers load far ahead and spill the sums.
  JG_KEEP
  for (int j = 0; j < 4; j++) {
    typename Isa::Weights w[kParts];
    const uint8_t* at = tile + 64 * j;
    JG_UNROLL
    for (int p = 0; p < kParts; p++) w[p] = Isa::low_nibbles(at + 64 / kParts * p);
    add_dots<MB>(w, x, 4 * j, sums);
    JG_UNROLL
    for (int p = 0; p < kParts; p++) w[p] = Isa::high_nibbles(at + 64 / kParts * p);
    add_dots<MB>(w, x, 16 + 4 * j, sums);
  }
}

inline void prefetch_tile(const uint8_t* tile, int bytes) {
  for (int line = 0; line < bytes; line += 64) __builtin_prefetch(tile + 8 * bytes + line);
}

template <int MB>
inline void store_rows(const typename Isa::Float (&acc)[MB][kParts], int64_t first, float* y, int64_t ldy) {
  for (int m = 0; m < MB; m++)
    for (int p = 0; p < kParts; p++) Isa::store(y + (first + m) * ldy + p * Isa::kLanes, acc[m][p]);
}

// MB rows of activations, from row `first` on, with one row of int4 tiles.
struct Int4 {
  const uint8_t* tiles;
  const jg::Activations& a;

  template <int MB>
  void block(int64_t first, float* y, int64_t ldy) const {
    const int64_t groups = a.columns / jg::kGroup;
    typename Isa::Float acc[MB][kParts];
    for (int m = 0; m < MB; m++)
      for (int p = 0; p < kParts; p++) acc[m][p] = Isa::zero();
    for (int64_t g = 0; g < groups; g++) {
      const uint8_t* tile = tiles + g * jg::kInt4Tile;
      prefetch_tile(tile, jg::kInt4Tile);
      const int8_t* x[MB];
      typename Isa::Sum sums[MB][kParts];
      JG_UNROLL
      for (int m = 0; m < MB; m++) {
        x[m] = a.values + ((first + m) * groups + g) * jg::kGroup;
        JG_UNROLL
        for (int p = 0; p < kParts; p++) sums[m][p] = Isa::none();
      }
      group_sums<MB>(tile, x, sums);
      typename Isa::Float weight_scale[kParts];
      JG_UNROLL
      for (int p = 0; p < kParts; p++) weight_scale[p] = Isa::half(tile + 256 + 2 * Isa::kLanes * p);
      JG_UNROLL
      for (int m = 0; m < MB; m++) {
        const int64_t at = (first + m) * groups + g;
        const auto scale = Isa::set(a.scales[at]);
        const auto offset = Isa::mul(Isa::set(-Isa::kBias), Isa::set(a.sums[at]));
        JG_UNROLL
        for (int p = 0; p < kParts; p++)
          acc[m][p] = Isa::fma(Isa::fma(Isa::total(sums[m][p]), scale, offset), weight_scale[p], acc[m][p]);
      }
    }
    store_rows<MB>(acc, first, y, ldy);
  }
};

// The same with int8 tiles and float32 activations.
struct Int8 {
  const uint8_t* tiles;
  const float* x;
  int64_t columns;

  template <int MB, int kInput>
  static void add_input(const typename Isa::Weights (&w)[kParts], const float* const (&at)[MB],
                        typename Isa::Float (&sums)[MB][kParts]) {
    typename Isa::Float input[kParts];
    JG_UNROLL
    for (int p = 0; p < kParts; p++) input[p] = Isa::template input<kInput>(w[p]);
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const auto value = Isa::set(at[m][kInput]);
      JG_UNROLL
      for (int p = 0; p < kParts; p++) sums[m][p] = Isa::fma(input[p], value, sums[m][p]);
    }
  }

  template <int MB>
  void block(int64_t first, float* y, int64_t ldy) const {
    typename Isa::Float acc[MB][kParts];
    for (int m = 0; m < MB; m++)
      for (int p = 0; p < kParts; p++) acc[m][p] = Isa::zero();
    for (int64_t g = 0; g < columns / jg::kGroup; g++) {
      const uint8_t* tile = tiles + g * jg::kInt8Tile;
      prefetch_tile(tile, jg::kInt8Tile);
      typename Isa::Float sums[MB][kParts];
      JG_UNROLL
      for (int m = 0; m < MB; m++)
        JG_UNROLL
        for (int p = 0; p < kParts; p++) sums[m][p] = Isa::zero();
      JG_KEEP
      for (int j = 0; j < 8; j++) {
        typename Isa::Weights w[kParts];
        const float* at[MB];
        JG_UNROLL
        for (int p = 0; p < kParts; p++) w[p] = Isa::bytes(tile + 64 * j + 64 / kParts * p);
        JG_UNROLL
        for (int m = 0; m < MB; m++) at[m] = x + (first + m) * columns + g * jg::kGroup + 4 * j;
        add_input<MB, 0>(w, at, sums);
        add_input<MB, 1>(w, at, sums);
        add_input<MB, 2>(w, at, sums);
        add_input<MB, 3>(w, at, sums);
      }
      JG_UNROLL
      for (int p = 0; p < kParts; p++) {
        const auto scale = Isa::half(tile + 512 + 2 * Isa::kLanes * p);
        JG_UNROLL
        for (int m = 0; m < MB; m++) acc[m][p] = Isa::fma(sums[m][p], scale, acc[m][p]);
      }
    }
    store_rows<MB>(acc, first, y, ldy);
  }
};

// All rows, as many at once as share a pass best.
template <typename Product>
void all_rows(const Product& product, int64_t rows, float* y, int64_t ldy) {
  int64_t m = 0;
  for (; m + Isa::kBlock <= rows; m += Isa::kBlock) product.template block<Isa::kBlock>(m, y, ldy);
  switch (rows - m) {
    case 7: product.template block<7>(m, y, ldy); break;
    case 6: product.template block<6>(m, y, ldy); break;
    case 5: product.template block<5>(m, y, ldy); break;
    case 4: product.template block<4>(m, y, ldy); break;
    case 3: product.template block<3>(m, y, ldy); break;
    case 2: product.template block<2>(m, y, ldy); break;
    case 1: product.template block<1>(m, y, ldy); break;
    default: break;
  }
}

void int4_tiles(const uint8_t* tiles, const jg::Activations& x, int64_t rows, float* y, int64_t ldy) {
  all_rows(Int4{tiles, x}, rows, y, ldy);
}

void int8_tiles(const uint8_t* tiles, const float* x, int64_t columns, int64_t rows, float* y, int64_t ldy) {
  all_rows(Int8{tiles, x, columns}, rows, y, ldy);
}

void quantize_row(const float* x, int64_t columns, int8_t* values, float* scales, float* sums) {
  for (int64_t g = 0; g < columns / jg::kGroup; g++) {
    const auto found = Isa::quantize(x + g * jg::kGroup, values + g * jg::kGroup);
    scales[g] = found.scale;
    sums[g] = found.scale * float(found.sum);
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

void softmax(float* row, int64_t count) {
  float peak = row[0], total = 0;
  for (int64_t i = 1; i < count; i++) peak = row[i] > peak ? row[i] : peak;
  for (int64_t i = 0; i < count; i++) total += row[i] = std::exp(row[i] - peak);
  for (int64_t i = 0; i < count; i++) row[i] /= total;
}

// Scores of all positions, softmax, then the weighted sum of values; each key and value is read once for all heads.
void attend(const jg::Attend& a, int64_t first, int64_t count, float* scores) {
  const int64_t kv_head = first / (a.heads / a.kv_heads);
  const uint16_t* keys = a.keys + kv_head * a.head_stride;
  const uint16_t* values = a.values + kv_head * a.head_stride;
  const float* query = a.query + first * a.width;
  float* out = a.out + first * a.width;
  for (int64_t p = 0; p < a.positions; p++) {
    const uint16_t* key = keys + p * a.width;
    for (int64_t h = 0; h < count; h++) {
      Isa::Float sum = Isa::zero();
      for (int64_t i = 0; i < a.width; i += Isa::kLanes)
        sum = Isa::fma(Isa::load_floats(query + h * a.width + i), Isa::bf16(key + i), sum);
      scores[h * a.positions + p] = a.scale * Isa::sum(sum);
    }
  }
  for (int64_t h = 0; h < count; h++) softmax(scores + h * a.positions, a.positions);
  for (int64_t i = 0; i < count * a.width; i++) out[i] = 0;
  for (int64_t p = 0; p < a.positions; p++) {
    const uint16_t* value = values + p * a.width;
    for (int64_t h = 0; h < count; h++) {
      const Isa::Float weight = Isa::set(scores[h * a.positions + p]);
      float* row = out + h * a.width;
      for (int64_t i = 0; i < a.width; i += Isa::kLanes)
        Isa::store(row + i, Isa::fma(weight, Isa::bf16(value + i), Isa::load_floats(row + i)));
    }
  }
}

}  // namespace

#define JG_TABLE(identifier, text)                                                                                   \
  namespace jg {                                                                                                     \
  const Table identifier = {text,    quantize_row, int4_tiles, int8_tiles, rms_norm_row, softcap, gated_gelu, attend}; \
  }
