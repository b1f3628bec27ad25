// AVX2 + FMA + F16C: 8 outputs a vector. maddubs multiplies unsigned weights with signed activations.
#if defined(__x86_64__)
#include <immintrin.h>

#include "exponential.h"
#include "kernels.h"

namespace {

struct Isa {
  static constexpr int kLanes = 8;
  static constexpr int kFewRows = 4, kManyRows = 4, kSums = 8;
  static constexpr int kQueries = 2;
  using Float = __m256;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float set(float f) { return _mm256_set1_ps(f); }
  static Float load_floats(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float half(const uint8_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static Float int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  static Float bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static float sum(Float v) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  static Float clamp(Float x, float low, float high) { return _mm256_min_ps(_mm256_max_ps(x, set(low)), set(high)); }
  static Float round(Float x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float scale(Float p, Float n) {
    const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(p, _mm256_castsi256_ps(power));
  }
  static Float exp(Float x) { return jg::exponential<Isa>(x); }

  using Weights = __m256i;
  using Sum = __m256i;  // for nibbles 16 words, two for each output; else 8 int32
  static constexpr int32_t kBias = 8;

  static Weights low_nibbles(const uint8_t* p) { return _mm256_and_si256(bytes(p), _mm256_set1_epi8(15)); }
  static Weights high_nibbles(const uint8_t* p) {
    return _mm256_and_si256(_mm256_srli_epi16(bytes(p), 4), _mm256_set1_epi8(15));
  }
  static Weights bytes(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static __m256i four(const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    return _mm256_set1_epi32(bytes);
  }
  static __m256i two(const int16_t* x) { return four((const int8_t*)x); }
  static Weights even(const uint8_t* p) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes(p), 8), 8); }
  static Weights odd(const uint8_t* p) { return _mm256_srai_epi16(bytes(p), 8); }
  static Sum start(int32_t) { return none(); }
  static Sum none() { return _mm256_setzero_si256(); }
  // A word takes the eight products of a group, each at most 2 * 15 * 127, without overflow.
  static Sum dot(Sum sum, Weights w, __m256i x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x)); }
  static Sum dot_words(Sum sum, Weights w, __m256i x) { return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x)); }
  static Float total(Sum sum, int32_t s) {
    return words_total(_mm256_add_epi32(_mm256_madd_epi16(sum, _mm256_set1_epi16(1)), _mm256_set1_epi32(s)));
  }
  static Float words_total(Sum sum) { return _mm256_cvtepi32_ps(sum); }

  struct Group {
    float scale;
    int32_t sum;
  };
  static Group quantize(const float* x, int8_t* values) {
    const Float sign = set(-0.0f);
    Float v[4], peak = zero();
    for (int j = 0; j < 4; j++) {
      v[j] = load_floats(x + 8 * j);
      peak = _mm256_max_ps(peak, _mm256_andnot_ps(sign, v[j]));
    }
    __m128 top = _mm_max_ps(_mm256_castps256_ps128(peak), _mm256_extractf128_ps(peak, 1));
    top = _mm_max_ps(top, _mm_movehl_ps(top, top));
    const float biggest = _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
    const Float inverse = set(biggest > 0 ? 127.0f / biggest : 0.0f);
    __m256i whole[4], total = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) {
      whole[j] = _mm256_cvtps_epi32(mul(v[j], inverse));
      total = _mm256_add_epi32(total, whole[j]);
    }
    const __m256i words = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)values, _mm256_permutevar8x32_epi32(words, order));
    __m128i t = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0x4e));
    t = _mm_add_epi32(t, _mm_shuffle_epi32(t, 0xb1));
    return {biggest / 127.0f, _mm_cvtsi128_si32(t)};
  }
};

}  // namespace

#include "kernels.inl"
JG_TABLE(avx2_table, "avx2")
#endif
