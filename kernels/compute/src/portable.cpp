// Plain C++: 4 outputs a vector, for every processor, and the twin of the others in their tests.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace {

struct Isa {
  static constexpr int kLanes = 4;
  static constexpr int kFewRows = 4, kManyRows = 4, kSums = 0;
  static constexpr int kQueries = 2;
  struct Float {
    float v[4];
  };
  template <typename F>
  static Float each(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Float zero() { return {{0, 0, 0, 0}}; }
  static Float set(float f) { return {{f, f, f, f}}; }
  static Float load_floats(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static void store(float* p, Float v) { std::memcpy(p, v.v, sizeof v.v); }
  static Float add(Float a, Float b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
  static Float mul(Float a, Float b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
  static Float div(Float a, Float b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
  static Float fma(Float a, Float b, Float c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
  static Float exp(Float a) { return each([&](int i) { return std::exp(a.v[i]); }); }
  static float sum(Float a) { return a.v[0] + a.v[1] + a.v[2] + a.v[3]; }
  static float bits(uint32_t u) {
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
    if (exponent == 31) return bits(sign | 0x7f800000 | mantissa << 13);
    return bits(sign | (exponent + 112) << 23 | mantissa << 13);
  }
  static Float half(const uint8_t* p) {
    uint16_t h[4];
    std::memcpy(h, p, sizeof h);
    return each([&](int i) { return half_to_float(h[i]); });
  }
  static Float int8(const int8_t* p) {
    return each([&](int i) { return float(p[i]); });
  }
  static Float bf16(const uint16_t* p) {
    return each([&](int i) { return bits(uint32_t(p[i]) << 16); });
  }

  struct Weights {
    int8_t w[16];
  };
  struct Sum {
    int32_t v[4];
  };
  static Weights low_nibbles(const uint8_t* p) {
    Weights weights;
    for (int i = 0; i < 16; i++) weights.w[i] = int8_t((p[i] & 15) - 8);
    return weights;
  }
  static Weights high_nibbles(const uint8_t* p) {
    Weights weights;
    for (int i = 0; i < 16; i++) weights.w[i] = int8_t((p[i] >> 4) - 8);
    return weights;
  }
  static Weights even(const uint8_t* p) {
    Weights weights;
    for (int i = 0; i < 8; i++) weights.w[i] = int8_t(p[2 * i]);
    return weights;
  }
  static Weights odd(const uint8_t* p) { return even(p + 1); }
  static const int8_t* four(const int8_t* x) { return x; }
  static const int16_t* two(const int16_t* x) { return x; }
  static Sum start(int32_t) { return none(); }
  static Sum none() { return {{0, 0, 0, 0}}; }
  static Sum dot(Sum sum, const Weights& weights, const int8_t* x) {
    for (int i = 0; i < 16; i++) sum.v[i / 4] += weights.w[i] * x[i % 4];
    return sum;
  }
  static Sum dot_words(Sum sum, const Weights& weights, const int16_t* x) {
    for (int i = 0; i < 8; i++) sum.v[i / 2] += weights.w[i] * x[i % 2];
    return sum;
  }
  static Float total(Sum sum, int32_t) { return words_total(sum); }
  static Float words_total(Sum sum) {
    return each([&](int i) { return float(sum.v[i]); });
  }
  static constexpr int32_t kBias = 0;

  struct Group {
    float scale;
    int32_t sum;
  };
  static Group quantize(const float* x, int8_t* values) {
    float biggest = 0;
    for (int i = 0; i < 32; i++) biggest = std::fmax(biggest, std::fabs(x[i]));
    const float inverse = biggest > 0 ? 127.0f / biggest : 0.0f;
    Group group = {biggest / 127.0f, 0};
    for (int i = 0; i < 32; i++) {
      values[i] = int8_t(std::nearbyint(x[i] * inverse));
      group.sum += values[i];
    }
    return group;
  }
};

}  // namespace

#include "kernels.inl"
JG_TABLE(portable_table, "portable")
