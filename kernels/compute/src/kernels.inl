// The kernels, written once over a handful of vector primitives. A file for one instruction set defines
// `struct Isa` in an anonymous namespace and includes this:
//
//   kLanes                     output rows held in one vector (kTileRows is a multiple of it)
//   Int, Float                 vectors of kLanes int32 / float32
//   zero(), set(f), load(p), store(p, v), add, mul, fma(a, b, c) = a * b + c, max, sum(v), biggest(v)
//   to_float(Int), half(p)     conversions; half reads kLanes fp16
//   bf16(p)                    reads kLanes bf16
//   exp(v)
//   Group4, load4(tile, row)   32 inputs of kLanes rows, starting at row `row` of a tile, unpacked from nibbles
//   dot4(Group4, x, sum)       int32 dot products with 32 int8 activations
//   Group8, load8, dot8        the same for int8 tiles
//   quantize(x, values) -> {scale, sum}   one group of 32 floats
#include <cmath>

namespace {

// MB rows of activations share one pass over the weights of kLanes outputs.
template <int MB, bool kFour>
inline void tile_block(const uint8_t* tiles, int64_t lane_row, const jg::Activations& x, int64_t first, float* y,
                       int64_t ldy) {
  constexpr int kBytes = kFour ? jg::kInt4Tile : jg::kInt8Tile;
  const int64_t groups = x.columns / jg::kGroup;
  Isa::Float acc[MB];
  for (int m = 0; m < MB; m++) acc[m] = Isa::zero();
  for (int64_t g = 0; g < groups; g++) {
    const uint8_t* tile = tiles + g * kBytes;
    __builtin_prefetch(tile + 8 * kBytes);
    __builtin_prefetch(tile + 8 * kBytes + 64);
    __builtin_prefetch(tile + 8 * kBytes + 128);
    __builtin_prefetch(tile + 8 * kBytes + 192);
    const auto weights = Isa::template load<kFour>(tile, lane_row);
    const Isa::Float scale = Isa::half(tile + kBytes - 2 * jg::kTileRows + 2 * lane_row);
    for (int m = 0; m < MB; m++) {
      const int64_t at = (first + m) * groups + g;
      const Isa::Int dot = Isa::dot(weights, x.values + at * jg::kGroup, x.sums[at]);
      acc[m] = Isa::fma(Isa::to_float(dot), Isa::mul(scale, Isa::set(x.scales[at])), acc[m]);
    }
  }
  for (int m = 0; m < MB; m++) Isa::store(y + (first + m) * ldy + lane_row, acc[m]);
}

template <bool kFour>
void tiles_product(const uint8_t* tiles, const jg::Activations& x, int64_t rows, float* y, int64_t ldy) {
  for (int64_t lane_row = 0; lane_row < jg::kTileRows; lane_row += Isa::kLanes) {
    int64_t m = 0;
    for (; m + Isa::kBlock <= rows; m += Isa::kBlock) tile_block<Isa::kBlock, kFour>(tiles, lane_row, x, m, y, ldy);
    switch (rows - m) {
      case 7: tile_block<7, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 6: tile_block<6, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 5: tile_block<5, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 4: tile_block<4, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 3: tile_block<3, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 2: tile_block<2, kFour>(tiles, lane_row, x, m, y, ldy); break;
      case 1: tile_block<1, kFour>(tiles, lane_row, x, m, y, ldy); break;
      default: break;
    }
  }
}

void quantize_row(const float* x, int64_t columns, int8_t* values, float* scales, int32_t* sums) {
  for (int64_t g = 0; g < columns / jg::kGroup; g++)
    Isa::quantize(x + g * jg::kGroup, values + g * jg::kGroup, scales + g, sums + g);
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
  const Table identifier = {text, quantize_row, tiles_product<true>, tiles_product<false>, gated_gelu, attend}; \
  }
