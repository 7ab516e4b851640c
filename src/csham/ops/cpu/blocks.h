// Channels a block at a time, for maps whose channels are contiguous (channels_last.h).
//
// A block is two vectors of float32. For bfloat16 the first holds the even channels and the second the odd ones: halves
// of 32-bit lanes come apart and together again with a shift and a mask, where neighbours would have to be shuffled.
// Arrays with a value per channel are brought into this lane order once per image.
#pragma once

#include "sample.h"
#include "vectors.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

namespace csham {
namespace CPU_CAPABILITY {
namespace pixels {

using CPU_CAPABILITY::larger;
using CPU_CAPABILITY::load;
using CPU_CAPABILITY::sum;
using CPU_CAPABILITY::largest;
using CPU_CAPABILITY::where_equal;
using CPU_CAPABILITY::passed;
using CPU_CAPABILITY::store;
using CPU_CAPABILITY::prefetch;

constexpr int64_t kBlock = 2 * kWidth;

struct Pair {
  Vec a, b;
  Pair() = default;
  Pair(const Vec& a, const Vec& b) : a(a), b(b) {}
  explicit Pair(float value) : a(value), b(value) {}
};

inline Pair operator+(const Pair& x, const Pair& y) { return {x.a + y.a, x.b + y.b}; }
inline Pair operator*(const Pair& x, const Pair& y) { return {x.a * y.a, x.b * y.b}; }
inline Pair operator*(const Pair& x, const Vec& y) { return {x.a * y, x.b * y}; }
inline Pair operator&(const Pair& x, const Pair& mask) { return {x.a & mask.a, x.b & mask.b}; }
inline Pair fmadd(const Pair& x, const Pair& y, const Pair& z) {
  return {at::vec::fmadd(x.a, y.a, z.a), at::vec::fmadd(x.b, y.b, z.b)};
}
inline Pair fmadd(const Pair& x, const Vec& y, const Pair& z) {
  return {at::vec::fmadd(x.a, y, z.a), at::vec::fmadd(x.b, y, z.b)};
}
inline Pair larger(const Pair& x, const Pair& y) { return {larger(x.a, y.a), larger(x.b, y.b)}; }
inline Pair select(const Pair& mask, const Pair& x, const Pair& otherwise) {
  return {Vec::blendv(otherwise.a, x.a, mask.a), Vec::blendv(otherwise.b, x.b, mask.b)};
}
inline Pair passed(const Pair& y, const Pair& gradient) { return {passed(y.a, gradient.a), passed(y.b, gradient.b)}; }

// select_equal: a == b ? x : otherwise. count_equal: one more in the lanes where a == b, in counts that begin at zero
// and that `counted` makes numbers; as integers they take the mask of a comparison as it is.
#if defined(CPU_CAPABILITY_AVX512)
inline Vec select_equal(const Vec& a, const Vec& b, const Vec& x, const Vec& otherwise) {
  return _mm512_mask_mov_ps(otherwise, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), x);
}
inline Vec count_equal(const Vec& count, const Vec& a, const Vec& b) {
  return _mm512_mask_add_ps(count, _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), count, _mm512_set1_ps(1.f));
}
inline Vec counted(const Vec& count) { return count; }
#elif defined(CPU_CAPABILITY_AVX2)
inline Vec select_equal(const Vec& a, const Vec& b, const Vec& x, const Vec& otherwise) {
  return Vec::blendv(otherwise, x, a == b);
}
inline Vec count_equal(const Vec& count, const Vec& a, const Vec& b) {
  return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(count), _mm256_castps_si256(a == b)));
}
inline Vec counted(const Vec& count) { return _mm256_cvtepi32_ps(_mm256_castps_si256(count)); }
#else
inline Vec select_equal(const Vec& a, const Vec& b, const Vec& x, const Vec& otherwise) {
  return Vec::blendv(otherwise, x, a == b);
}
inline Vec count_equal(const Vec& count, const Vec& a, const Vec& b) { return count + where_equal(a, b, Vec(1.f)); }
inline Vec counted(const Vec& count) { return count; }
#endif

inline Pair select_equal(const Pair& a, const Vec& b, const Vec& x, const Vec& otherwise) {
  return {select_equal(a.a, b, x, otherwise), select_equal(a.b, b, x, otherwise)};
}
inline Pair select_equal(const Pair& a, const Pair& b, const Pair& x, const Pair& otherwise) {
  return {select_equal(a.a, b.a, x.a, otherwise.a), select_equal(a.b, b.b, x.b, otherwise.b)};
}
inline Pair count_equal(const Pair& count, const Pair& a, const Pair& b) {
  return {count_equal(count.a, a.a, b.a), count_equal(count.b, a.b, b.b)};
}
inline Pair counted(const Pair& count) { return {counted(count.a), counted(count.b)}; }

inline Pair load_block(const float* p) { return {Vec::loadu(p), Vec::loadu(p + kWidth)}; }
inline void store_block(float* p, const Pair& x) { store2(p, x.a, x.b); }

#if defined(CPU_CAPABILITY_AVX512)
inline Pair load_block(const BFloat16* p) {
  const __m512i bits = _mm512_loadu_si512(p);
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(0xffff0000)))};
}

// To the nearest, ties to even: one is added to the upper half where the lower half, less one if the upper is even,
// reaches 0x8000. Of a NaN the lower half must be zero (plain_nan), or the upper could wrap and be a number.
inline __m512i rounded(const Pair& x) {
  const __m512i even = _mm512_castps_si512(x.a), odd = _mm512_castps_si512(x.b);
  const __mmask32 odd_halves = 0xaaaaaaaa;
  const __m512i upper = _mm512_mask_blend_epi16(odd_halves, _mm512_srli_epi32(even, 16), odd);
  const __m512i lower = _mm512_mask_blend_epi16(odd_halves, even, _mm512_slli_epi32(odd, 16));
  const __m512i is_even = _mm512_andnot_si512(upper, _mm512_set1_epi16(1));
  return _mm512_add_epi16(upper, _mm512_srli_epi16(_mm512_subs_epu16(lower, is_even), 15));
}

inline void store_block(BFloat16* p, const Pair& x) { _mm512_storeu_si512(p, rounded(x)); }
#elif defined(CPU_CAPABILITY_AVX2)
inline Pair load_block(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xffff0000)))};
}

// To the nearest, ties to even: one is added to the upper half where the lower half, less one if the upper is even,
// reaches 0x8000. Of a NaN the lower half must be zero (plain_nan), or the upper could wrap and be a number.
inline __m256i rounded(const Pair& x) {
  const __m256i even = _mm256_castps_si256(x.a), odd = _mm256_castps_si256(x.b);
  const __m256i upper = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  const __m256i lower = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
  const __m256i is_even = _mm256_andnot_si256(upper, _mm256_set1_epi16(1));
  return _mm256_add_epi16(upper, _mm256_srli_epi16(_mm256_subs_epu16(lower, is_even), 15));
}

inline void store_block(BFloat16* p, const Pair& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), rounded(x));
}
#else
inline Pair load_block(const BFloat16* p) {
  float even[kWidth], odd[kWidth];
  for (int64_t i = 0; i < kWidth; ++i) {
    even[i] = static_cast<float>(p[2 * i]);
    odd[i] = static_cast<float>(p[2 * i + 1]);
  }
  return {Vec::loadu(even), Vec::loadu(odd)};
}

inline void store_block(BFloat16* p, const Pair& x) {
  float even[kWidth], odd[kWidth];
  x.a.store(even);
  x.b.store(odd);
  for (int64_t i = 0; i < kWidth; ++i) {
    p[2 * i] = static_cast<BFloat16>(even[i]);
    p[2 * i + 1] = static_cast<BFloat16>(odd[i]);
  }
}
#endif

// One vector's bytes past the caches.
inline void stream_bytes(void* to, const void* from) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_loadu_si256(static_cast<const __m256i*>(from)));
#else
  std::memcpy(to, from, kWidth * sizeof(float));
#endif
}

inline void stream_block(float* p, const Pair& x) { stream2(p, x.a, x.b); }
inline void stream_block(BFloat16* p, const Pair& x) {
#if defined(CPU_CAPABILITY_AVX512)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), rounded(x));
#elif defined(CPU_CAPABILITY_AVX2)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(p), rounded(x));
#else
  store_block(p, x);
#endif
}

// Orders stores past the caches before whatever tells another thread that they are done.
inline void finish_streams() {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  _mm_sfence();
#endif
}

// Whether rows of C channels from p on can be written past the caches.
template <typename T>
bool can_stream(const T* p, int64_t C) {
  return C % kBlock == 0 && reinterpret_cast<uintptr_t>(p) % kAlignment == 0;
}

inline int64_t padded(int64_t C) { return (C + kBlock - 1) / kBlock * kBlock; }

// All ones in the lanes of a row's last block that hold channels, if C ends within a block.
template <typename T>
Pair tail_mask(int64_t C) {
  alignas(64) T values[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) values[i] = static_cast<T>(i < C % kBlock ? 1.f : 0.f);
  const Pair x = load_block(values);
  return {x.a > Vec(0.f), x.b > Vec(0.f)};
}

// Memory for one call's arrays, kept by the thread: images can be too small to pay for malloc.
class Scratch {
 public:
  explicit Scratch(int64_t floats) {
    static thread_local std::vector<float> memory;
    const int64_t lines = kFloatsPerLine * (kArrays + floats / kFloatsPerLine);
    if (static_cast<int64_t>(memory.size()) < lines) memory.resize(lines);
    next_ = memory.data();
    end_ = next_ + lines;
  }

  // Uninitialised; at most kArrays of them.
  float* take(int64_t floats) {
    float* array = next_ + (-(reinterpret_cast<uintptr_t>(next_) / sizeof(float)) % kFloatsPerLine);
    next_ = array + floats;
    assert(next_ <= end_);
    return array;
  }

 private:
  static constexpr int64_t kFloatsPerLine = 16;
  static constexpr int64_t kArrays = 24;
  float* next_;
  float* end_;
};

// A map as the passes over it take it. Where two positions' channels fill a block, the two are one position of it: of
// bfloat16, the first has the lower halves of both vectors and the second the upper ones. Rows of 4 n positions let two
// cells beside each other, of 2 x 2 positions, be a square of 2 x 2 blocks.
template <typename T>
struct View {
  static constexpr bool kMayShare = kWidth == 16 && !std::is_same_v<T, float>;

  explicit View(const Size& map, bool may_share = true)
      : two(kMayShare && may_share && 2 * map.C == kBlock && map.W % 4 == 0),
        channels(map.C),
        size(two ? Size{kBlock, map.H, map.W / 2} : map) {}

  bool two;
  int64_t channels;
  Size size;
};

// The value, or a NaN whose lower half is zero, like those of bfloat16 and those that the processor makes: only float32
// arrays can hold others, and made plain once they need not be looked for where their products are rounded.
inline float plain_nan(float value) { return value == value ? value : std::numeric_limits<float>::quiet_NaN(); }
inline Vec plain_nan(const Vec& x) { return Vec::blendv(Vec(std::numeric_limits<float>::quiet_NaN()), x, x == x); }
inline Pair plain_nan(const Pair& x) { return {plain_nan(x.a), plain_nan(x.b)}; }

// A value per channel, or `neutral` throughout where there are none, to blocks in the lane order of T, each `stride`
// after the one before it, then padding. Positions that share a block have the same values.
template <typename T>
void put_lanes(const float* values, const View<T>& view, float neutral, float padding, float* lanes, int64_t stride) {
  for (int64_t c = 0; c < view.channels; c += kBlock, lanes += stride) {
    const int64_t count = std::min(kBlock, view.channels - c);
    Pair x(neutral);
    if (values && count == kBlock) {
      x = plain_nan(load_block(values + c));
    } else {
      float block[kBlock];
      for (int64_t i = 0; i < kBlock; ++i) block[i] = i >= count ? padding : values ? plain_nan(values[c + i]) : neutral;
      if (view.two) std::copy_n(block, count, block + count);
      x = load_block(static_cast<const float*>(block));
    }
    if (!std::is_same_v<T, float>) std::tie(x.a, x.b) = at::vec::deinterleave2(x.a, x.b);
    store_block(lanes, x);
  }
}

// The same to whole blocks one after another.
template <typename T>
const float* to_lanes(const float* values, const View<T>& view, float neutral, float padding, Scratch& scratch) {
  if (std::is_same_v<T, float> && values && view.channels % kBlock == 0) return values;
  float* lanes = scratch.take(padded(view.channels));
  put_lanes(values, view, neutral, padding, lanes, kBlock);
  return lanes;
}

// C values back from lane order.
template <typename T>
void from_lanes(const float* lanes, int64_t C, float* values, int64_t stride = kBlock) {
  for (int64_t c = 0; c < C; c += kBlock, lanes += stride) {
    Pair x = load_block(lanes);
    if (!std::is_same_v<T, float>) std::tie(x.a, x.b) = at::vec::interleave2(x.a, x.b);
    if (c + kBlock <= C) {
      store_block(values + c, x);
    } else {
      float block[kBlock];
      store_block(block, x);
      std::copy_n(block, C - c, values + c);
    }
  }
}

// K values per channel, block for block beside each other: one pointer leads to all.
template <typename T, int K>
class ChannelTable {
 public:
  static constexpr int64_t kStride = K * kBlock;
  static int64_t floats(int64_t C) { return K * padded(C); }

  ChannelTable(const View<T>& view, Scratch& scratch) : view_(view), data_(scratch.take(floats(view.channels))) {}

  void put(int k, const float* values, float neutral, float padding) {
    put_lanes(values, view_, neutral, padding, data_ + k * kBlock, kStride);
  }
  // Sums over positions: those that share a block are added up here.
  void get(int k, float* sums) const {
    const float* lanes = data_ + k * kBlock;
    if (!view_.two) return from_lanes<T>(lanes, view_.channels, sums, kStride);
    float both[kBlock];
    from_lanes<T>(lanes, kBlock, both);
    for (int64_t c = 0; c < view_.channels; ++c) sums[c] = both[c] + both[view_.channels + c];
  }

  // The values k of the block that begins at channel c.
  __attribute__((always_inline)) float* at(int64_t c, int k) const { return data_ + c * K + k * kBlock; }
  __attribute__((always_inline)) Pair operator()(int64_t c, int k) const {
    return load_block(static_cast<const float*>(at(c, k)));
  }

 private:
  View<T> view_;
  float* data_;
};

// f(C), with C a compile-time constant where it is a single block and kFrequent, or two positions': nothing then needs
// to be kept for another block. Every such copy of f takes its time to compile, and without wide vectors it gains little.
struct OneBlock : std::integral_constant<int64_t, kBlock> {};
struct TwoInBlock : OneBlock {};
template <bool kFrequent, typename T, typename F>
void with_channels(const View<T>& view, F&& f) {
  if constexpr (View<T>::kMayShare) {
    if (view.two) return f(TwoInBlock());
  }
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (kFrequent) {
    if (view.channels == kBlock) return f(OneBlock());
  }
#endif
  f(view.channels);
}

// Positions in a block, C as from with_channels.
template <typename Channels>
constexpr bool kTwo = std::is_same_v<Channels, TwoInBlock>;

// The values at position p of a view, each in all lanes that belong to its position.
template <typename Channels>
__attribute__((always_inline)) inline Vec in_lanes(const float* values, int64_t p) {
  if constexpr (kTwo<Channels>) {
    constexpr int64_t kUpper = (1ll << kWidth) - (1ll << kWidth / 2);
    return Vec::template blend<kUpper>(Vec(values[2 * p]), Vec(values[2 * p + 1]));
  } else {
    return Vec(values[p]);
  }
}

// out at positions[n] = the sum of x[n] times a factor, or its maximum; of each half where two positions share x[n].
template <typename Channels, size_t N>
__attribute__((always_inline)) inline void write_results(const float* results, const std::array<int64_t, N>& positions,
                                                         float factor, float* out) {
  constexpr int64_t kCount = kTwo<Channels> ? 2 : 1;
  for (size_t n = 0; n < N; ++n) {
    for (int64_t i = 0; i < kCount; ++i) out[kCount * positions[n] + i] = results[kCount * n + i] * factor;
  }
}
template <typename Channels, size_t N>
__attribute__((always_inline)) inline void write_sums(const Vec (&x)[N], const std::array<int64_t, N>& positions,
                                                      float* out, float factor = 1.f) {
  float results[2 * N];
  if constexpr (kTwo<Channels>) sums_of_halves(x, results);
  else sums(x, results);
  write_results<Channels>(results, positions, factor, out);
}
template <typename Channels, size_t N>
__attribute__((always_inline)) inline void write_maxima(const Vec (&x)[N], const std::array<int64_t, N>& positions,
                                                        float* out) {
  float results[2 * N];
  if constexpr (kTwo<Channels>) maxima_of_halves(x, results);
  else maxima(x, results);
  write_results<Channels>(results, positions, 1.f, out);
}

// The number of positions whose last block ends within the map.
inline int64_t whole_rows(int64_t C, int64_t positions) {
  return positions * C < padded(C) ? 0 : (positions * C - padded(C)) / C + 1;
}

// The rows of a map to read from, a row being the channels of one position: blocks may be loaded beyond a row's end.
// The last rows, beyond which the map ends, are copied to where that is allowed.
template <typename T>
class Rows {
 public:
  Rows(const T* x, int64_t C, int64_t positions) : x_(x), C_(C), safe_(positions) {
    if (C % kBlock == 0) return;
    safe_ = whole_rows(C, positions);
    last_.assign((positions - safe_) * C + kBlock, T(0.f));
    std::copy(x + safe_ * C, x + positions * C, last_.begin());
  }

  // The same row for every position; not with OneBlock.
  explicit Rows(const T* row) : x_(row), C_(0), safe_(std::numeric_limits<int64_t>::max()) {}

  // The rows at ascending positions, C as from with_channels.
  template <size_t N, typename Channels>
  __attribute__((always_inline)) std::array<const T*, N> operator()(const std::array<int64_t, N>& positions,
                                                                    Channels C) const {
    std::array<const T*, N> rows;
    for (size_t n = 0; n < N; ++n) rows[n] = x_ + positions[n] * stride(C);
    if constexpr (std::is_base_of_v<OneBlock, Channels>) return rows;
    if (positions[N - 1] >= safe_) {
      for (size_t n = 0; n < N; ++n) {
        if (positions[n] >= safe_) rows[n] = last_.data() + (positions[n] - safe_) * C_;
      }
    }
    return rows;
  }

  bool repeated() const { return C_ == 0; }

 private:
  int64_t stride(int64_t) const { return C_; }
  static constexpr int64_t stride(OneBlock) { return kBlock; }

  const T* x_;
  int64_t C_, safe_;
  std::vector<T> last_;
};

// Where rows are written. What cannot be stored a block at a time where it belongs is put together in L1 first: rows
// that end within a block and, unless kDirect, rows on their way past the caches (a block of bfloat16 is half a line).
template <typename T, bool kDirect = std::is_same_v<T, float>>
class OutputRows {
 public:
  OutputRows(T* y, int64_t C, bool stream, Scratch& scratch)
      : y_(y), C_(C), stream_(stream && can_stream(y, C)), stride_(padded(C)) {
    if (C % kBlock != 0 || (stream_ && !kDirect)) buffer_ = reinterpret_cast<T*>(scratch.take(kRows * padded(C)));
  }

  // Where to store the blocks of a group's rows.
  template <size_t N, typename Channels>
  __attribute__((always_inline)) std::array<T*, N> operator()(const std::array<int64_t, N>& positions,
                                                              Channels C) const {
    static_assert(N <= kRows);
    std::array<T*, N> rows;
    for (size_t n = 0; n < N; ++n) rows[n] = buffer_ ? buffer_ + n * stride_ : y_ + positions[n] * C;
    return rows;
  }

  __attribute__((always_inline)) void store(T* p, const Pair& x) const {
    if constexpr (kDirect) {
      if (stream_) return stream_block(p, x);
    }
    store_block(p, x);
  }

  template <size_t N>
  __attribute__((always_inline)) void finish(const std::array<int64_t, N>& positions) const {
    if (!buffer_) return;
    if (!stream_) {
      for (size_t n = 0; n < N; ++n) std::copy_n(buffer_ + n * stride_, C_, y_ + positions[n] * C_);
      return;
    }
    // One row after another: a line written in several goes is slow.
    for (size_t n = 0; n < N; ++n) {
      T* const y = y_ + positions[n] * C_;
      const T* const row = buffer_ + n * stride_;
      for (int64_t c = 0, C = C_; c < C; c += kLane) stream_bytes(y + c, row + c);
    }
  }

 private:
  static constexpr int64_t kLane = kWidth * static_cast<int64_t>(sizeof(float) / sizeof(T));
  static constexpr size_t kRows = 4;
  T* y_;
  int64_t C_;
  bool stream_;
  int64_t stride_;
  T* buffer_ = nullptr;
};

}  // namespace pixels
}  // namespace CPU_CAPABILITY
}  // namespace csham
