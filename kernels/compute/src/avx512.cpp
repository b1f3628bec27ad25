// AVX-512 with VNNI: 16 outputs a vector. dpbusd adds four products of an unsigned and a signed byte to int32.
#if defined(__x86_64__)
#include <immintrin.h>

#include "exponential.h"
#include "kernels.h"

namespace {

struct Isa {
  static constexpr int kLanes = 16;
  static constexpr int kFewRows = 8, kManyRows = 6, kSums = 16;
  static constexpr int kQueries = 4;
  using Float = __m512;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float set(float f) { return _mm512_set1_ps(f); }
  static Float load_floats(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  static Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float half(const uint8_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static Float int8(const int8_t* p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))); }
  static Float bf16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static float sum(Float v) { return _mm512_reduce_add_ps(v); }
  static Float clamp(Float x, float low, float high) { return _mm512_min_ps(_mm512_max_ps(x, set(low)), set(high)); }
  static Float round(Float x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static Float scale(Float p, Float n) { return _mm512_scalef_ps(p, n); }
  static Float exp(Float x) { return jg::exponential<Isa>(x); }

  using Weights = __m512i;
  using Sum = __m512i;
  static constexpr int32_t kBias = 8;

  static Weights low_nibbles(const uint8_t* p) { return _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15)); }
  static Weights high_nibbles(const uint8_t* p) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15));
  }
  static Weights even(const uint8_t* p) {
    return _mm512_srai_epi16(_mm512_slli_epi16(_mm512_loadu_si512(p), 8), 8);
  }
  static Weights odd(const uint8_t* p) { return _mm512_srai_epi16(_mm512_loadu_si512(p), 8); }
  static __m512i four(const int8_t* x) {
    int32_t bytes;
    __builtin_memcpy(&bytes, x, 4);
    return _mm512_set1_epi32(bytes);
  }
  static __m512i two(const int16_t* x) { return four((const int8_t*)x); }
  static Sum start(int32_t s) { return _mm512_set1_epi32(s); }
  static Sum none() { return _mm512_setzero_si512(); }
  static Sum dot(Sum sum, Weights w, __m512i x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static Sum dot_words(Sum sum, Weights w, __m512i x) { return _mm512_dpwssd_epi32(sum, w, x); }
  static Float total(Sum sum, int32_t) { return words_total(sum); }
  static Float words_total(Sum sum) { return _mm512_cvtepi32_ps(sum); }

  struct Group {
    float scale;
    int32_t sum;
  };
  static Group quantize(const float* x, int8_t* values) {
    const Float a = load_floats(x), b = load_floats(x + 16);
    const float biggest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const Float inverse = set(biggest > 0 ? 127.0f / biggest : 0.0f);
    const __m512i first = _mm512_cvtps_epi32(mul(a, inverse)), second = _mm512_cvtps_epi32(mul(b, inverse));
    _mm_storeu_si128((__m128i*)values, _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128((__m128i*)(values + 16), _mm512_cvtepi32_epi8(second));
    return {biggest / 127.0f, _mm512_reduce_add_epi32(_mm512_add_epi32(first, second))};
  }
};

}  // namespace

#include "kernels.inl"
JG_TABLE(avx512_table, "avx512-vnni")
#endif
