// NEON with the dot product extension (Armv8.2-A, every Apple M chip): 4 outputs a vector.
#if defined(__aarch64__)
#include <arm_neon.h>

#include "exponential.h"
#include "kernels.h"

namespace {

struct Isa {
  static constexpr int kLanes = 4;
  static constexpr int kFewRows = 4, kManyRows = 4, kSums = 0;
  static constexpr int kQueries = 4;
  using Float = float32x4_t;

  static Float zero() { return vdupq_n_f32(0); }
  static Float set(float f) { return vdupq_n_f32(f); }
  static Float load_floats(const float* p) { return vld1q_f32(p); }
  static void store(float* p, Float v) { vst1q_f32(p, v); }
  static Float add(Float a, Float b) { return vaddq_f32(a, b); }
  static Float mul(Float a, Float b) { return vmulq_f32(a, b); }
  static Float div(Float a, Float b) { return vdivq_f32(a, b); }
  static Float fma(Float a, Float b, Float c) { return vfmaq_f32(c, a, b); }
  static Float half(const uint8_t* p) { return vcvt_f32_f16(vld1_f16((const float16_t*)p)); }
  static Float int8(const int8_t* p) {
    int32_t bytes;
    __builtin_memcpy(&bytes, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes))))));
  }
  static Float bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static float sum(Float v) { return vaddvq_f32(v); }
  static Float clamp(Float x, float low, float high) { return vminq_f32(vmaxq_f32(x, set(low)), set(high)); }
  static Float round(Float x) { return vrndnq_f32(x); }
  static Float scale(Float p, Float n) {
    const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
    return mul(p, vreinterpretq_f32_s32(power));
  }
  static Float exp(Float x) { return jg::exponential<Isa>(x); }

  using Weights = int8x16_t;
  using Words = int16x8_t;
  using Sum = int32x4_t;

  static Weights low_nibbles(const uint8_t* p) {
    return vsubq_s8(vreinterpretq_s8_u8(vandq_u8(vld1q_u8(p), vdupq_n_u8(15))), vdupq_n_s8(8));
  }
  static Weights high_nibbles(const uint8_t* p) {
    return vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(p), 4)), vdupq_n_s8(8));
  }
  static int8x16_t four(const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(bytes));
  }
  static Words two(const int16_t* x) { return vreinterpretq_s16_s8(four((const int8_t*)x)); }
  static Weights even(const uint8_t* p) {
    return vreinterpretq_s8_s16(vshrq_n_s16(vshlq_n_s16(vreinterpretq_s16_u8(vld1q_u8(p)), 8), 8));
  }
  static Weights odd(const uint8_t* p) { return vreinterpretq_s8_s16(vshrq_n_s16(vreinterpretq_s16_u8(vld1q_u8(p)), 8)); }
  static Sum start(int32_t) { return none(); }
  static Sum none() { return vdupq_n_s32(0); }
  static Sum dot(Sum sum, Weights w, int8x16_t x) { return vdotq_s32(sum, w, x); }
  static Sum dot_words(Sum sum, Weights w, Words x) {
    const Words words = vreinterpretq_s16_s8(w);
    const int32x4_t low = vmull_s16(vget_low_s16(words), vget_low_s16(x));
    return vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(words, x)));
  }
  static Float total(Sum sum, int32_t) { return words_total(sum); }
  static Float words_total(Sum sum) { return vcvtq_f32_s32(sum); }
  static constexpr int32_t kBias = 0;

  struct Group {
    float scale;
    int32_t sum;
  };
  static Group quantize(const float* x, int8_t* values) {
    Float peak = zero();
    for (int i = 0; i < 32; i += 4) peak = vmaxq_f32(peak, vabsq_f32(vld1q_f32(x + i)));
    const float biggest = vmaxvq_f32(peak);
    const Float inverse = set(biggest > 0 ? 127.0f / biggest : 0.0f);
    int32x4_t total = vdupq_n_s32(0);
    for (int i = 0; i < 32; i += 8) {
      const int32x4_t a = vcvtnq_s32_f32(mul(vld1q_f32(x + i), inverse));
      const int32x4_t b = vcvtnq_s32_f32(mul(vld1q_f32(x + i + 4), inverse));
      total = vaddq_s32(total, vaddq_s32(a, b));
      vst1_s8(values + i, vmovn_s16(vcombine_s16(vmovn_s32(a), vmovn_s32(b))));
    }
    return {biggest / 127.0f, vaddvq_s32(total)};
  }
};

}  // namespace

#include "kernels.inl"
JG_TABLE(neon_table, "neon-dotprod")
#endif
