// The kernels, written once over a handful of vector primitives. A file for one instruction set defines
// `struct Isa` in an anonymous namespace and includes this:
//
//   kLanes                     outputs in one vector; a tile of 16 rows is 16 / kLanes parts
//   kBlock                     rows of activations that share one pass over a tile, at most 8
//   Float                      vector of kLanes float32
//   zero(), set(f), load_floats(p), store(p, v), add, mul, div, fma(a, b, c) = a * b + c, sum(v), exp(v)
//   half(p), bf16(p)           read kLanes fp16 / bf16
//   Weights, Sum               a vector of 4 inputs for each output; what their products are added up in
//   low_nibbles(p), high_nibbles(p)   one half of 4 bytes for each output
//   bytes(p)                   reads 4 int8 for each output
//   four(x)                    4 int8 activations, for every output
//   none<kFour>()              an empty Sum
//   dot<kFour>(sum, w, x)      sum + w . x
//   total<kFour>(sum)          as Float
//   bias<kFour>()              what unpacking added to every weight
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
template <int MB, bool kFour>
inline void add_dots(const typename Isa::Weights (&w)[kParts], const int8_t* const (&x)[MB], int64_t offset,
                     typename Isa::Sum (&sums)[MB][kParts]) {
  JG_UNROLL
  for (int m = 0; m < MB; m++) {
    const auto inputs = Isa::four(x[m] + offset);
    JG_UNROLL
    for (int p = 0; p < kParts; p++) sums[m][p] = Isa::template dot<kFour>(sums[m][p], w[p], inputs);
  }
}

// The dot products of one group.
template <int MB, bool kFour>
inline void group_sums(const uint8_t* tile, const int8_t* const (&x)[MB], typename Isa::Sum (&sums)[MB][kParts]) {
  // Left a loop: unrolled, compilers load far ahead and spill the sums.
  JG_KEEP
  for (int j = 0; j < (kFour ? 4 : 8); j++) {
    typename Isa::Weights w[kParts];
    const uint8_t* at = tile + 64 * j;
    JG_UNROLL
    for (int p = 0; p < kParts; p++) w[p] = kFour ? Isa::low_nibbles(at + 64 / kParts * p) : Isa::bytes(at + 64 / kParts * p);
    add_dots<MB, kFour>(w, x, 4 * j, sums);
    if constexpr (kFour) {
      JG_UNROLL
      for (int p = 0; p < kParts; p++) w[p] = Isa::high_nibbles(at + 64 / kParts * p);
      add_dots<MB, kFour>(w, x, 16 + 4 * j, sums);
    }
  }
}

// MB rows of activations, from row `first` on, with one row of tiles.
template <int MB, bool kFour>
void tile_block(const uint8_t* tiles, const jg::Activations& a, int64_t first, float* y, int64_t ldy) {
  constexpr int kBytes = kFour ? jg::kInt4Tile : jg::kInt8Tile;
  constexpr int kScales = kBytes - 2 * jg::kTileRows;
  const int64_t groups = a.columns / jg::kGroup;
  typename Isa::Float acc[MB][kParts];
  for (int m = 0; m < MB; m++)
    for (int p = 0; p < kParts; p++) acc[m][p] = Isa::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* tile = tiles + g * kBytes;
    for (int line = 0; line < kBytes; line += 64) __builtin_prefetch(tile + 8 * kBytes + line);
    const int8_t* x[MB];
    typename Isa::Sum sums[MB][kParts];
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      x[m] = a.values + ((first + m) * groups + g) * jg::kGroup;
      JG_UNROLL
      for (int p = 0; p < kParts; p++) sums[m][p] = Isa::template none<kFour>();
    }
    group_sums<MB, kFour>(tile, x, sums);
    typename Isa::Float weight_scale[kParts];
    JG_UNROLL
    for (int p = 0; p < kParts; p++) weight_scale[p] = Isa::half(tile + kScales + 2 * Isa::kLanes * p);
    JG_UNROLL
    for (int m = 0; m < MB; m++) {
      const int64_t at = (first + m) * groups + g;
      const auto scale = Isa::set(a.scales[at]);
      const auto offset = Isa::mul(Isa::set(-Isa::template bias<kFour>()), Isa::set(a.sums[at]));
      JG_UNROLL
      for (int p = 0; p < kParts; p++) {
        const auto value = Isa::fma(Isa::template total<kFour>(sums[m][p]), scale, offset);
        acc[m][p] = Isa::fma(value, weight_scale[p], acc[m][p]);
      }
    }
  }
  for (int m = 0; m < MB; m++)
    for (int p = 0; p < kParts; p++) Isa::store(y + (first + m) * ldy + p * Isa::kLanes, acc[m][p]);
}

template <bool kFour>
void tiles_product(const uint8_t* tiles, const jg::Activations& x, int64_t rows, float* y, int64_t ldy) {
  int64_t m = 0;
  for (; m + Isa::kBlock <= rows; m += Isa::kBlock) tile_block<Isa::kBlock, kFour>(tiles, x, m, y, ldy);
  switch (rows - m) {
    case 7: tile_block<7, kFour>(tiles, x, m, y, ldy); break;
    case 6: tile_block<6, kFour>(tiles, x, m, y, ldy); break;
    case 5: tile_block<5, kFour>(tiles, x, m, y, ldy); break;
    case 4: tile_block<4, kFour>(tiles, x, m, y, ldy); break;
    case 3: tile_block<3, kFour>(tiles, x, m, y, ldy); break;
    case 2: tile_block<2, kFour>(tiles, x, m, y, ldy); break;
    case 1: tile_block<1, kFour>(tiles, x, m, y, ldy); break;
    default: break;
  }
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

#define JG_TABLE(identifier, text)                                                                         \
  namespace jg {                                                                                           \
  const Table identifier = {text,         quantize_row, tiles_product<true>, tiles_product<false>,         \
                            rms_norm_row, softcap,      gated_gelu,          attend};                      \
  }
