// Plain C++: 4 outputs a vector, for every processor, and the twin of the others in their tests.
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace {

struct Isa {
  static constexpr int kLanes = 4;
  static constexpr int kBlock = 4;
  struct Int {
    int32_t v[4];
  };
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
  static Float to_float(Int a) { return each([&](int i) { return float(a.v[i]); }); }
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
  static Float bf16(const uint16_t* p) {
    return each([&](int i) { return bits(uint32_t(p[i]) << 16); });
  }

  struct Group {
    int8_t w[4][32];
  };
  template <bool kFour>
  static Group load(const uint8_t* tile, int64_t row) {
    Group group;
    for (int r = 0; r < 4; r++)
      for (int i = 0; i < 32; i++) {
        const int vector = kFour ? (i % 16) / 4 : i / 4;
        const uint8_t byte = tile[64 * vector + 4 * (row + r) + i % 4];
        group.w[r][i] = kFour ? int8_t((i < 16 ? byte & 15 : byte >> 4) - 8) : int8_t(byte);
      }
    return group;
  }
  static Int dot(const Group& group, const int8_t* x, int32_t) {
    Int total = {{0, 0, 0, 0}};
    for (int r = 0; r < 4; r++)
      for (int i = 0; i < 32; i++) total.v[r] += group.w[r][i] * x[i];
    return total;
  }

  static void quantize(const float* x, int8_t* values, float* scale, int32_t* sum) {
    float biggest = 0;
    for (int i = 0; i < 32; i++) biggest = std::fmax(biggest, std::fabs(x[i]));
    const float inverse = biggest > 0 ? 127.0f / biggest : 0.0f;
    *sum = 0;
    for (int i = 0; i < 32; i++) {
      values[i] = int8_t(std::nearbyint(x[i] * inverse));
      *sum += values[i];
    }
    *scale = biggest / 127.0f;
  }
};

}  // namespace

#include "kernels.inl"
JG_TABLE(portable_table, "portable")
