// Loads and stores of float32 vectors from float or bfloat16 memory, on top of at::vec.
//
// Everything here is compiled once for each instruction set (kernel.h), inside a namespace named after it.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
#include <immintrin.h>
#endif

namespace csham {
namespace CPU_CAPABILITY {

using at::BFloat16;
using Vec = at::vec::Vectorized<float>;
constexpr int64_t kWidth = Vec::size();

inline Vec load(const float* p) { return Vec::loadu(p); }

inline Vec load(const BFloat16* p) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
#elif defined(CPU_CAPABILITY_AVX2)
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
#else
  float values[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) values[i] = static_cast<float>(p[i]);
  return Vec::loadu(values);
#endif
}

// The first count < kWidth values, the others zero.
inline Vec load(const float* p, int64_t count) { return Vec::loadu(p, count); }

inline Vec load(const BFloat16* p, int64_t count) {
  BFloat16 values[kWidth] = {};
  std::memcpy(values, p, count * sizeof(BFloat16));
  return load(values);
}

// Two vectors at a time, because a full vector of bfloat16 holds two of float.
inline void store2(float* p, const Vec& a, const Vec& b) {
  a.store(p);
  b.store(p + kWidth);
}

inline void store2(BFloat16* p, const Vec& a, const Vec& b) {
  at::vec::convert_from_float<BFloat16>(a, b).store(p);
}

// Past the caches, one vector or two; p must be aligned to a whole vector (kAlignment bytes).
#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kAlignment = 64;
inline void stream(float* p, const Vec& a) { _mm512_stream_ps(p, a); }
inline void stream2(float* p, const Vec& a, const Vec& b) {
  _mm512_stream_ps(p, a);
  _mm512_stream_ps(p + kWidth, b);
}
inline void stream2(BFloat16* p, const Vec& a, const Vec& b) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), at::vec::convert_from_float<BFloat16>(a, b));
}
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int64_t kAlignment = 32;
inline void stream(float* p, const Vec& a) { _mm256_stream_ps(p, a); }
inline void stream2(float* p, const Vec& a, const Vec& b) {
  _mm256_stream_ps(p, a);
  _mm256_stream_ps(p + kWidth, b);
}
inline void stream2(BFloat16* p, const Vec& a, const Vec& b) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), at::vec::convert_from_float<BFloat16>(a, b));
}
#else
constexpr int64_t kAlignment = 1;
inline void stream(float* p, const Vec& a) { a.store(p); }
template <typename T>
inline void stream2(T* p, const Vec& a, const Vec& b) {
  store2(p, a, b);
}
#endif

// One vector, or the first count values of one.
inline void store(float* p, const Vec& a, int64_t count = kWidth) { a.store(p, count); }

inline void store(BFloat16* p, const Vec& a, int64_t count = kWidth) {
  BFloat16 values[2 * kWidth];
  store2(values, a, a);
  std::memcpy(p, values, count * sizeof(BFloat16));
}

// Caches, as __builtin_prefetch numbers them.
constexpr int kFirst = 3, kSecond = 2;

// Asks for `bytes` bytes from p on, in the cache lines that hold them; beyond the end of an array that does no harm.
// Always inlined: GCC takes a function that only prefetches for one without effect, and drops its calls.
template <int64_t bytes, int kCache>
__attribute__((always_inline)) inline void prefetch(const void* p) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, 0, kCache);
}

// Bytes from x to what is read after it, and is to be asked for meanwhile; 0 where that is nothing.
inline int64_t bytes_to(const void* next, const void* x) {
  return next == nullptr ? 0 : static_cast<const char*>(next) - static_cast<const char*>(x);
}

// The larger value. A NaN may be lost: the mean that always goes with a maximum still carries it.
inline Vec larger(const Vec& a, const Vec& b) { return at::vec::clamp_min(a, b); }

inline float sum(const Vec& a) {
  return at::vec::vec_reduce_all<float>([](Vec& x, Vec& y) { return x + y; }, a);
}

inline float largest(const Vec& a) {
  return at::vec::vec_reduce_all<float>([](Vec& x, Vec& y) { return larger(x, y); }, a);
}

// out[n] = the sum (or whatever join computes) of all values of x[n]; of halves, of the lower ones in out[2 n] and of the
// upper ones in out[2 n + 1].
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
struct Add {
  template <typename V>
  V operator()(const V& x, const V& y) const { return x + y; }
};
struct Larger {
  __m128 operator()(__m128 x, __m128 y) const { return _mm_max_ps(x, y); }
  __m256 operator()(__m256 x, __m256 y) const { return _mm256_max_ps(x, y); }
#if defined(CPU_CAPABILITY_AVX512)
  __m512 operator()(__m512 x, __m512 y) const { return _mm512_max_ps(x, y); }
#endif
};

#if defined(CPU_CAPABILITY_AVX512)
// In each quarter, a value for each of the four.
template <typename Join>
inline __m512 reduce_quarters(const Vec (&x)[4], Join join) {
  const __m512 x01 = join(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
  const __m512 x23 = join(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
  return join(_mm512_shuffle_ps(x01, x23, 0x44), _mm512_shuffle_ps(x01, x23, 0xee));
}
template <typename Join>
inline void reduce(const Vec (&x)[4], float* out, Join join) {
  const __m512 all = reduce_quarters(x, join);
  const __m256 half = join(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(out, join(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
template <typename Join>
inline void reduce_halves(const Vec (&x)[4], float* out, Join join) {
  const __m512 all = reduce_quarters(x, join);
  const __m256 lower = _mm512_castps512_ps256(all), upper = _mm512_extractf32x8_ps(all, 1);
  const __m128 even = join(_mm256_castps256_ps128(lower), _mm256_extractf128_ps(lower, 1));
  const __m128 odd = join(_mm256_castps256_ps128(upper), _mm256_extractf128_ps(upper, 1));
  _mm_storeu_ps(out, _mm_unpacklo_ps(even, odd));
  _mm_storeu_ps(out + 4, _mm_unpackhi_ps(even, odd));
}
template <size_t N, typename Join>
inline void reduce_halves(const Vec (&x)[N], float* out, Join join) {
  for (size_t n = 0; n < N; ++n) {
    const Vec same[4] = {x[n], x[n], x[n], x[n]};
    float values[8];
    reduce_halves(same, values, join);
    std::copy_n(values, 2, out + 2 * n);
  }
}
inline void sums_of_halves(const auto& x, float* out) { reduce_halves(x, out, Add()); }
inline void maxima_of_halves(const auto& x, float* out) { reduce_halves(x, out, Larger()); }
#else
template <typename Join>
inline void reduce(const Vec (&x)[4], float* out, Join join) {
  const __m256 x01 = join(_mm256_unpacklo_ps(x[0], x[1]), _mm256_unpackhi_ps(x[0], x[1]));
  const __m256 x23 = join(_mm256_unpacklo_ps(x[2], x[3]), _mm256_unpackhi_ps(x[2], x[3]));
  const __m256 all = join(_mm256_shuffle_ps(x01, x23, 0x44), _mm256_shuffle_ps(x01, x23, 0xee));
  _mm_storeu_ps(out, join(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}
#endif
inline void sums(const Vec (&x)[4], float* out) { reduce(x, out, Add()); }
inline void maxima(const Vec (&x)[4], float* out) { reduce(x, out, Larger()); }
#endif

template <size_t N>
inline void sums(const Vec (&x)[N], float* out) {
  for (size_t n = 0; n < N; ++n) out[n] = sum(x[n]);
}
template <size_t N>
inline void maxima(const Vec (&x)[N], float* out) {
  for (size_t n = 0; n < N; ++n) out[n] = largest(x[n]);
}

// value where a == b, else zero.
inline Vec where_equal(const Vec& a, const Vec& b, const Vec& value) { return (a == b) & value; }

// What a ReLU that returned y passes of a gradient; not where y > 0, for the gradient at NaN passes, as torch's.
inline Vec passed(const Vec& y, const Vec& gradient) { return (y != Vec(0.f)) & gradient; }

}  // namespace CPU_CAPABILITY
}  // namespace csham
