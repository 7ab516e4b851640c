// The kernels of one image for a map in NCHW order: x[c * H * W + p].
//
// A plane's positions are walked in blocks of two vectors, for several channels at a time, so that what belongs to the
// positions is loaded once for all of them. A block of bfloat16 is unpacked into its even and its odd values, which
// takes one shift and one mask; every array over the positions is therefore first brought into the same order
// ("arranged") and padded to whole blocks.
//
// The neighbour term needs neither shuffles nor strides: pooled rows are multiplied, lane by lane, with the filter's
// columns repeated over the lanes, and what the lanes hold is brought together once for all channels.
#pragma once

#include <algorithm>
#include <array>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "sample.h"
#include "vectors.h"

namespace csham {
namespace CPU_CAPABILITY {
namespace planes {

constexpr int64_t kBlock = 2 * kWidth;

struct Block {
  Vec a, b;
};

inline Block both(float value) { return {Vec(value), Vec(value)}; }
inline Block operator+(const Block& u, const Block& v) { return {u.a + v.a, u.b + v.b}; }
inline Block operator*(const Block& u, const Block& v) { return {u.a * v.a, u.b * v.b}; }
inline Block operator*(const Vec& u, const Block& v) { return {u * v.a, u * v.b}; }
inline Block fmadd(const Block& u, const Block& v, const Block& w) {
  return {at::vec::fmadd(u.a, v.a, w.a), at::vec::fmadd(u.b, v.b, w.b)};
}
inline Block fmadd(const Vec& u, const Block& v, const Block& w) {
  return {at::vec::fmadd(u, v.a, w.a), at::vec::fmadd(u, v.b, w.b)};
}
inline Block larger(const Block& u, const Block& v) {
  return {CPU_CAPABILITY::larger(u.a, v.a), CPU_CAPABILITY::larger(u.b, v.b)};
}
inline Block equal(const Block& u, const Block& v) { return {u.a == v.a, u.b == v.b}; }
inline Block where_equal(const Block& u, const Block& v, const Block& value) {
  return {CPU_CAPABILITY::where_equal(u.a, v.a, value.a), CPU_CAPABILITY::where_equal(u.b, v.b, value.b)};
}
inline Block passed(const Block& y, const Block& gradient) {
  return {CPU_CAPABILITY::passed(y.a, gradient.a), CPU_CAPABILITY::passed(y.b, gradient.b)};
}
inline Block where(const Block& mask, const Block& value, const Block& other) {
  return {Vec::blendv(other.a, value.a, mask.a), Vec::blendv(other.b, value.b, mask.b)};
}

inline Block load_block(const float* p) { return {load(p), load(p + kWidth)}; }

// Two bfloat16 fill the bits of one float: the even one below, the odd one above.
#if defined(CPU_CAPABILITY_AVX512)
inline Block unpacked(__m512i pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}
inline Block load_block(const BFloat16* p) { return unpacked(_mm512_loadu_si512(p)); }

// Bits whose upper half is the nearest bfloat16, the even one of two; all ones for a NaN, whose bits could carry over.
inline __m512i rounded(const Vec& value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  return _mm512_mask_set1_epi32(up, _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q), -1);
}

inline Vec packed(const Block& value) {
  return _mm512_castsi512_ps(
      _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(rounded(value.a), 16), rounded(value.b)));
}
#elif defined(CPU_CAPABILITY_AVX2)
inline Block unpacked(__m256i pairs) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
          _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))))};
}
inline Block load_block(const BFloat16* p) {
  return unpacked(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

// Bits whose upper half is the nearest bfloat16, the even one of two; all ones for a NaN, whose bits could carry over.
inline __m256i rounded(const Vec& value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  return _mm256_or_si256(up, _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q)));
}

inline Vec packed(const Block& value) {
  return _mm256_castsi256_ps(
      _mm256_blend_epi16(_mm256_srli_epi32(rounded(value.a), 16), rounded(value.b), 0xaa));
}
#else
inline Block load_block(const BFloat16* p) {
  float even[kWidth], odd[kWidth];
  for (int64_t i = 0; i < kWidth; ++i, p += 2) {
    even[i] = static_cast<float>(p[0]);
    odd[i] = static_cast<float>(p[1]);
  }
  return {Vec::loadu(even), Vec::loadu(odd)};
}

inline Vec packed(const Block& value) {
  float even[kWidth], odd[kWidth];
  value.a.store(even);
  value.b.store(odd);
  BFloat16 pairs[2 * kWidth];
  for (int64_t i = 0; i < kWidth; ++i) {
    pairs[2 * i] = even[i];
    pairs[2 * i + 1] = odd[i];
  }
  return Vec::loadu(pairs);
}
#endif

inline void store_block(float* p, const Block& value) { store2(p, value.a, value.b); }
inline void store_block(BFloat16* p, const Block& value) { packed(value).store(p); }
inline void stream_block(float* p, const Block& value) { stream2(p, value.a, value.b); }
inline void stream_block(BFloat16* p, const Block& value) { stream(reinterpret_cast<float*>(p), packed(value)); }

// A full block of a plane.
struct Whole {
  template <typename T>
  Block load(const T* p) const {
    return load_block(p);
  }
  template <typename T>
  void store(T* p, const Block& value, bool past_caches = false) const {
    past_caches ? stream_block(p, value) : store_block(p, value);
  }
  Block keep(const Block& value, const Block&) const { return value; }
};

// The first values of a block, at the end of a plane: loaded with zeros behind them.
template <typename T>
struct Part {
  int64_t count;
  Block mask;

  explicit Part(int64_t count) : count(count) {
    constexpr bool split = std::is_same_v<T, BFloat16>;
    const Vec end(static_cast<float>(count));
    mask.a = Vec::arange(0.f, split ? 2.f : 1.f) < end;
    mask.b = Vec::arange(split ? 1.f : static_cast<float>(kWidth), split ? 2.f : 1.f) < end;
  }
#if defined(CPU_CAPABILITY_AVX512)
  Block load(const float* p) const {
    return {_mm512_maskz_loadu_ps(lanes(), p), _mm512_maskz_loadu_ps(lanes() >> kWidth, p + kWidth)};
  }
  Block load(const BFloat16* p) const { return unpacked(_mm512_maskz_loadu_epi16(lanes(), p)); }
  void store(float* p, const Block& value, bool = false) const {
    _mm512_mask_storeu_ps(p, lanes(), value.a);
    _mm512_mask_storeu_ps(p + kWidth, lanes() >> kWidth, value.b);
  }
  void store(BFloat16* p, const Block& value, bool = false) const {
    _mm512_mask_storeu_epi16(p, lanes(), _mm512_castps_si512(packed(value)));
  }
  __mmask32 lanes() const { return (1u << count) - 1; }
#elif defined(CPU_CAPABILITY_AVX2)
  Block load(const float* p) const {
    return {_mm256_maskload_ps(p, bits(mask.a)), _mm256_maskload_ps(p + kWidth, bits(mask.b))};
  }
  void store(float* p, const Block& value, bool = false) const {
    _mm256_maskstore_ps(p, bits(mask.a), value.a);
    _mm256_maskstore_ps(p + kWidth, bits(mask.b), value.b);
  }
  // Two bfloat16 at a time, then the last of an odd number.
  Block load(const BFloat16* p) const {
    const __m256i pairs = _mm256_maskload_epi32(reinterpret_cast<const int*>(p), bits(mask.b));
    if (count % 2 == 0) return unpacked(pairs);
    const __m256i last = _mm256_and_si256(bits(mask.a), _mm256_set1_epi32(p[count - 1].x));
    return unpacked(_mm256_or_si256(pairs, _mm256_andnot_si256(bits(mask.b), last)));
  }
  void store(BFloat16* p, const Block& value, bool = false) const {
    const Vec pairs = packed(value);
    _mm256_maskstore_epi32(reinterpret_cast<int*>(p), bits(mask.b), bits(pairs));
    if (count % 2 == 0) return;
    BFloat16 values[kBlock];
    pairs.store(values);
    p[count - 1] = values[count - 1];
  }
  static __m256i bits(const Vec& value) { return _mm256_castps_si256(value); }
#else
  Block load(const T* p) const {
    T values[kBlock] = {};
    std::memcpy(values, p, count * sizeof(T));
    return load_block(values);
  }
  void store(T* p, const Block& value, bool = false) const {
    T values[kBlock];
    store_block(values, value);
    std::memcpy(p, values, count * sizeof(T));
  }
#endif
  Block keep(const Block& value, const Block& other) const { return where(mask, value, other); }
};

// Inlined, with its body: what the body captures must stay in registers, though it stores through pointers.
template <typename T, typename Body>
C10_ALWAYS_INLINE void for_blocks(int64_t positions, const Body& body) {
  const int64_t whole = positions - positions % kBlock;
  for (int64_t p = 0; p < whole; p += kBlock) body(p, Whole());
  if (whole < positions) body(whole, Part<T>(positions - whole));
}

// body(k, c) for groups of k channels, k a compile-time constant: the largest first, then the rest.
template <int K, typename Body>
C10_ALWAYS_INLINE void for_groups(int64_t c0, int64_t c1, const Body& body) {
  for (; c0 + K <= c1; c0 += K) body(std::integral_constant<int, K>(), c0);
  if constexpr (K > 1) for_groups<K / 2>(c0, c1, body);
}

// A thread's arrays, kept from call to call. Those of position_statistics hold an image's sums from range to range.
enum class Scratch {
  kSum, kMax, kCoarse, kX, kUp, kExpanded, kZeros, kSpatial, kMean, kTop, kPositionMax, kTies,
  kCount
};

template <typename U>
U* scratch(Scratch which, int64_t count) {
  constexpr int64_t kLine = 64;
  static thread_local std::array<std::vector<U>, static_cast<size_t>(Scratch::kCount)> arrays;
  auto& array = arrays[static_cast<size_t>(which)];
  const size_t needed = count + kLine / sizeof(U);
  if (array.size() < needed) array.resize(needed);
  const auto address = reinterpret_cast<uintptr_t>(array.data());
  return reinterpret_cast<U*>((address + kLine - 1) / kLine * kLine);
}

// Values c to c + K - 1 of an array over the channels that may be null.
template <int K>
std::array<float, K> taken(const float* values, int64_t c, float neutral) {
  std::array<float, K> group;
  for (int i = 0; i < K; ++i) group[i] = values ? values[c + i] : neutral;
  return group;
}

inline int64_t padded(int64_t positions) { return (positions + kBlock - 1) / kBlock * kBlock; }

inline float* filled(Scratch which, int64_t count, float value) {
  float* array = scratch<float>(which, count);
  std::fill_n(array, count, value);
  return array;
}

// An array over the positions in the order in which load_block takes them from x, zeros behind; neutral where null.
template <typename T>
const float* arranged(Scratch which, const float* values, int64_t positions, float neutral) {
  if (!values) return filled(which, padded(positions), neutral);
  if (std::is_same_v<T, float> && positions % kBlock == 0) return values;
  float* array = scratch<float>(which, padded(positions));
  for_blocks<float>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
    Block block = part.load(values + p);
    if constexpr (std::is_same_v<T, BFloat16>) std::tie(block.a, block.b) = at::vec::deinterleave2(block.a, block.b);
    store_block(array + p, block);
  });
  return array;
}

// dmean, and dmean + dmax for the position's maxima.
template <typename T>
std::pair<const float*, const float*> position_gradients(const float* dmean, const float* dmax, int64_t positions) {
  const float* mean = arranged<T>(Scratch::kMean, dmean, positions, 0.f);
  const float* max = arranged<T>(Scratch::kTop, dmax, positions, 0.f);
  float* at_max = scratch<float>(Scratch::kTop, padded(positions));  // in place, unless dmax itself is in order
  for (int64_t p = 0; p < padded(positions); p += kBlock)
    store_block(at_max + p, load_block(mean + p) + load_block(max + p));
  return {mean, at_max};
}

// The way back, times a factor.
template <typename T>
void rearrange(const float* array, int64_t positions, float factor, float* values) {
  for_blocks<float>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
    Block block = Vec(factor) * load_block(array + p);
    if constexpr (std::is_same_v<T, BFloat16>) std::tie(block.a, block.b) = at::vec::interleave2(block.a, block.b);
    part.store(values + p, block);
  });
}

// The neighbour term's grid. A lane of a vector of pooled values stands for one column of x (kRepeat 2: two lanes to a
// pooled column, each with half of its value), or for a pooled column (kRepeat 1).
template <typename T>
constexpr int64_t kRepeat = std::is_same_v<T, BFloat16> ? 1 : 2;
template <typename T>
constexpr int64_t kColumns = 2 * kWidth / kRepeat<T>;

struct Grid {
  int64_t h, w, coarse_h, coarse_w;
  int64_t top, left;  // padding

  explicit Grid(Size size)
      : h(size.pooled_H()), w(size.pooled_W()), coarse_h(size.coarse_H()), coarse_w(size.coarse_W()),
        top(h % 2), left(w % 2) {}
  int64_t lanes(int64_t repeat) const { return (repeat * w + kWidth - 1) / kWidth * kWidth; }
};

// A row of sums over two rows of x, and over two columns where the lanes are pooled columns.
inline Vec pooled(const float* upper, const float* lower) { return load(upper) + load(lower); }

inline Vec pooled(const BFloat16* upper, const BFloat16* lower) {
  const Block sum = load_block(upper) + load_block(lower);
  return sum.a + sum.b;
}

// The lanes' filters. A pooled row or column is even or odd once the padding is counted: an even one meets the filter's
// first row for the output of its own place and the last for the output before, an odd one the middle row only. In the
// same way an even lane holds columns 0 and 2 of the filter, an odd lane column 1 and nothing.
struct Taps {
  std::array<Vec, 4> even;  // own output, its two columns; the output before, its two columns
  std::array<Vec, 2> odd;
};

struct Lanes {
  Vec odd;

  Lanes(int64_t repeat, int64_t left) {
    float values[kWidth];
    for (int64_t l = 0; l < kWidth; ++l) values[l] = static_cast<float>((l / repeat + left) % 2);
    odd = Vec::loadu(values) > Vec(0.f);
  }
  Taps taps(const float* filter, float factor) const {
    const auto own = [&](const float* row) { return Vec::blendv(Vec(factor * row[0]), Vec(factor * row[1]), odd); };
    const auto before = [&](const float* row) { return Vec::blendv(Vec(factor * row[2]), Vec(0.f), odd); };
    return {{own(filter), before(filter), own(filter + 6), before(filter + 6)}, {own(filter + 3), before(filter + 3)}};
  }
};

// Two rows of lanes for each coarse row, for the two columns of the taps, and two before the first that count for
// nothing.
struct CoarseRows {
  const Grid& grid;
  int64_t repeat, width;
  float* values;

  CoarseRows(Scratch which, const Grid& grid, int64_t repeat)
      : grid(grid), repeat(repeat), width(grid.lanes(repeat)), values(scratch<float>(which, size())) {}
  int64_t size() const { return (grid.coarse_h + 1) * 2 * width; }
  void clear() const { std::fill_n(values, size(), 0.f); }
  float* at(int64_t coarse_row) const { return values + 2 * (coarse_row + 1) * width; }

  // body(pooled row, its coarse row, whether it is even)
  template <typename Body>
  C10_ALWAYS_INLINE void for_pooled(const Body& body) const {
    for (int64_t i = 0; i < grid.h; ++i) {
      const int64_t row = i + grid.top;
      row % 2 == 0 ? body(i, at(row / 2), std::true_type()) : body(i, at(row / 2), std::false_type());
    }
  }

  // Every lane's share of the coarse map: what it receives by way of the taps. Zeros behind the last pooled column.
  void expand(const float* coarse) const {
    clear();
    for_outputs([&](int64_t output, float& lane) { lane = coarse[output]; });
  }
  // The transpose.
  void collapse(float* coarse) const {
    std::fill_n(coarse, grid.coarse_h * grid.coarse_w, 0.f);
    for_outputs([&](int64_t output, float& lane) { coarse[output] += lane; });
  }

 private:
  template <typename Body>
  void for_outputs(const Body& body) const {
    for (int64_t i = 0; i < grid.coarse_h; ++i) {
      const int64_t first = i * grid.coarse_w;
      float* own = at(i);
      float* before = own + width;
      for (int64_t j = 0, lane = 0; j < grid.w; ++j) {
        const int64_t column = j + grid.left;
        const bool both = column % 2 == 0 && column > 0;
        for (int64_t r = 0; r < repeat; ++r, ++lane) {
          body(first + column / 2, own[lane]);
          if (both) body(first + column / 2 - 1, before[lane]);
        }
      }
    }
  }
};

template <typename T>
const T* zeros(int64_t count) {
  T* array = scratch<T>(Scratch::kZeros, count);
  std::fill_n(array, count, T(0.f));
  return array;
}

// Plane c, or a copy of it where a block from its last value on would reach past the image.
template <typename T>
const T* readable(const T* x, Size size, int64_t c, int64_t k) {
  const int64_t positions = size.positions();
  if ((size.C - 1 - c) * positions >= kBlock) return x + c * positions;
  constexpr int64_t kMost = kBlock;  // planes of one value each
  T* copies = scratch<T>(Scratch::kX, (kMost + 1) * (positions + kBlock));
  T* copy = copies + k * (positions + kBlock);
  std::copy_n(x + c * positions, positions, copy);
  std::fill_n(copy + positions, kBlock, T(0.f));
  return copy;
}

}  // namespace planes

template <typename T>
struct Contiguous {
  static void channel_statistics(const T* x, Size size, int64_t c0, int64_t c1, float* mean, float* max) {
    using namespace planes;
    const int64_t positions = size.positions();
    for_groups<4>(c0, c1, [&](auto k, int64_t c) C10_ALWAYS_INLINE_ATTRIBUTE {
      constexpr int K = k;
      Vec totals[K], highest[K];
      plane_statistics(x + c * positions, positions, std::min(positions, kClosed), totals, highest);
      CPU_CAPABILITY::sums(totals, mean + c);
      if (max) maxima(highest, max + c);
      if (positions > kClosed) add_statistics<K>(x + c * positions, positions, mean + c, max ? max + c : nullptr);
      for (int n = 0; n < K; ++n) mean[c + n] /= static_cast<float>(positions);
    });
  }

  static void position_statistics(const T* x, Size size, const float* wp, const float* filters, int64_t c0, int64_t c1,
                                  float* mean, float* max, float* neighbors, const T* next) {
    using namespace planes;
    const int64_t positions = size.positions();
    const int64_t ahead = bytes_to(next, x);
    const bool pools = neighbors && filters;
    const Grid grid(size);
    const CoarseRows rows(Scratch::kCoarse, grid, kRepeat<T>);
    float* sums = scratch<float>(Scratch::kSum, padded(positions));
    float* tops = scratch<float>(Scratch::kMax, padded(positions));
    if (c0 == 0) {
      std::fill_n(sums, padded(positions), 0.f);
      std::fill_n(tops, padded(positions), -std::numeric_limits<float>::infinity());
      rows.clear();
    }
    for_groups<8>(c0, c1, [&](auto k, int64_t c) C10_ALWAYS_INLINE_ATTRIBUTE {
      constexpr int K = k;
      const auto weights = taken<K>(wp, c, 1.f);
      add_positions<K>(x + c * positions, positions, weights, sums, tops, ahead);
      if (pools) add_neighbors<K>(x, size, c, weights, filters + 9 * c, rows);
    });
    if (c1 < size.C) return;
    rearrange<T>(sums, positions, 1.f / static_cast<float>(size.C), mean);
    rearrange<T>(tops, positions, 1.f, max);
    if (pools) rows.collapse(neighbors);
  }

  static void scale(const T* x, Size size, const float* w, const float* s, const T* shortcut, bool relu, T* y,
                    bool stream) {
    using namespace planes;
    const int64_t positions = size.positions();
    const float* spatial = arranged<T>(Scratch::kSpatial, s, positions, 1.f);
    const bool aligned = reinterpret_cast<uintptr_t>(y) % 64 == 0 && positions * sizeof(T) % 64 == 0;
    const bool past_caches = stream && aligned;
    for (int64_t c = 0; c < size.C; ++c) {
      const Vec weight(w ? w[c] : 1.f);
      const int64_t start = c * positions;
      const auto rows = [&](auto adds, auto rectifies) C10_ALWAYS_INLINE_ATTRIBUTE {
        for_blocks<T>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
          Block v = (weight * load_block(spatial + p)) * part.load(x + start + p);
          if constexpr (adds) v = v + part.load(shortcut + start + p);
          if constexpr (rectifies) v = larger(v, both(0.f));
          part.store(y + start + p, v, past_caches);
        });
      };
      using Yes = std::true_type;
      using No = std::false_type;
      if (shortcut) relu ? rows(Yes(), Yes()) : rows(Yes(), No());
      else relu ? rows(No(), Yes()) : rows(No(), No());
    }
  }

  static void scale_backward(const T* dy, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* position_max, const T* y, T* dz, float* dw, float* ds, float* ties) {
    using namespace planes;
    const int64_t positions = size.positions();
    const float* spatial = arranged<T>(Scratch::kSpatial, s, positions, 1.f);
    const float* tops = arranged<T>(Scratch::kPositionMax, position_max, positions, kNever);
    float* sums = filled(Scratch::kMean, padded(positions), 0.f);
    float* counts = filled(Scratch::kTies, padded(positions), 0.f);
    for_groups<4>(0, size.C, [&](auto k, int64_t c) C10_ALWAYS_INLINE_ATTRIBUTE {
      constexpr int K = k;
      const auto weights = taken<K>(w, c, 1.f), position_weights = taken<K>(wp, c, 1.f);
      const int64_t ahead = std::min<int64_t>(K * positions, kFurthest) * sizeof(T);
      std::array<Block, K> channel_sums;
      channel_sums.fill(both(0.f));
      const auto blocks = [&](auto rectified) C10_ALWAYS_INLINE_ATTRIBUTE {
        for_blocks<T>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
          const Block sp = load_block(spatial + p), top = load_block(tops + p);
          Block sum = load_block(sums + p), count = load_block(counts + p);
          for (int i = 0; i < K; ++i) {
            const int64_t at = (c + i) * positions + p;
            prefetch_ahead(x + at, ahead);
            prefetch_ahead(dy + at, ahead);
            const Block v = part.load(x + at);
            Block d = part.load(dy + at);
            if constexpr (rectified) {
              d = passed(part.load(y + at), d);
              part.store(dz + at, d);
            }
            const Block product = d * v;
            sum = fmadd(Vec(weights[i]), product, sum);
            channel_sums[i] = fmadd(sp, product, channel_sums[i]);
            count = count + where_equal(Vec(position_weights[i]) * v, top, both(1.f));
          }
          store_block(sums + p, sum);
          store_block(counts + p, count);
        });
      };
      y ? blocks(std::true_type()) : blocks(std::false_type());
      if (dw) totals(channel_sums, dw + c);
    });
    if (ds) rearrange<T>(sums, positions, 1.f, ds);
    if (ties) rearrange<T>(counts, positions, 1.f, ties);
  }

  static void statistics_gradient(const T* x, Size size, const float* wp, const float* dmean, const float* dmax,
                                  const float* position_max, const float* dneighbors, const float* filters,
                                  const float* channel_max, float* dwp, float* dfilters, float* ties, const T* next) {
    using namespace planes;
    const int64_t positions = size.positions();
    if (dwp || ties) {
      const int64_t ahead = bytes_to(next, x);
      const auto [elsewhere, at_max] = position_gradients<T>(dmean, dmax, positions);
      const float* tops = arranged<T>(Scratch::kPositionMax, position_max, positions, kNever);
      for_groups<4>(0, size.C, [&](auto k, int64_t c) C10_ALWAYS_INLINE_ATTRIBUTE {
        constexpr int K = k;
        const auto weights = taken<K>(wp, c, 1.f), highest = taken<K>(channel_max, c, kNever);
        std::array<Block, K> sums, counts;
        sums.fill(both(0.f));
        counts.fill(both(0.f));
        for_blocks<T>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
          const Block other = load_block(elsewhere + p), most = load_block(at_max + p), top = load_block(tops + p);
          const Block ones = part.keep(both(1.f), both(0.f));
          for (int i = 0; i < K; ++i) {
            prefetch_ahead(x + (c + i) * positions + p, ahead);
            const Block v = part.load(x + (c + i) * positions + p);
            sums[i] = fmadd(v, where(equal(Vec(weights[i]) * v, top), most, other), sums[i]);
            counts[i] = counts[i] + where_equal(v, both(highest[i]), ones);
          }
        });
        if (dwp) totals(sums, dwp + c);
        if (ties) totals(counts, ties + c);
      });
    }
    if (filters && dneighbors && (dwp || dfilters)) neighbors_gradient(x, size, wp, dneighbors, filters, dwp, dfilters);
  }

  static void input_gradient(const T* dz, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* dmean, const float* dmax, const float* position_max, const float* dneighbors,
                             const float* filters, const float* dchannel_mean, const float* dchannel_max,
                             const float* channel_max, T* dx, bool stream, const T* next) {
    using namespace planes;
    const Inputs in = {dz, x, size, w, s, wp, dmean, dmax, position_max, dneighbors, filters, dchannel_mean,
                       dchannel_max, channel_max, dx, bytes_to(next, x)};
    const bool aligned = reinterpret_cast<uintptr_t>(dx) % 64 == 0 && size.positions() * sizeof(T) % 64 == 0;
    constexpr bool kPairs = std::is_same_v<T, BFloat16>;
    if (!position_max) input_gradient<Up::kNone, false>(in, stream && aligned);
    else if (!filters || !dneighbors) input_gradient<Up::kNone, true>(in, stream && aligned);
    else if (kPairs && size.W % 2 == 0) input_gradient<Up::kPairs, true>(in, stream && aligned);
    else input_gradient<Up::kColumns, true>(in, stream && aligned);
  }

 private:
  static constexpr float kNever = std::numeric_limits<float>::quiet_NaN();  // equal to no value

  // Values from those at work to those of the next channels that are asked for, at most.
  static constexpr int64_t kFurthest = 8192;

  // While a block at p is read, asks for as much memory so many bytes further on.
  C10_ALWAYS_INLINE static void prefetch_ahead(const T* p, int64_t bytes) {
    prefetch<planes::kBlock * sizeof(T), kSecond>(reinterpret_cast<const char*>(p) + bytes);
  }

  // Positions whose values are added up in float32; in longer sums, digits would be lost.
  static constexpr int64_t kClosed = 16384;

  // Sums and maxima of `count` positions of K planes.
  template <size_t K>
  C10_ALWAYS_INLINE static void plane_statistics(const T* x, int64_t positions, int64_t count, Vec (&totals)[K],
                                                 Vec (&highest)[K]) {
    using namespace planes;
    const Block lowest = both(-std::numeric_limits<float>::infinity());
    for (size_t n = 0; n < K; ++n) {
      const T* plane = x + n * positions;
      std::array<Block, 2> sums = {both(0.f), both(0.f)}, tops = {lowest, lowest};
      int64_t p = 0;
      for (; p + 2 * kBlock <= count; p += 2 * kBlock)
        for (int i = 0; i < 2; ++i) {
          const Block v = load_block(plane + p + i * kBlock);
          sums[i] = sums[i] + v;
          tops[i] = larger(tops[i], v);
        }
      for_blocks<T>(count - p, [&](int64_t q, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
        const Block v = part.load(plane + p + q);
        sums[0] = sums[0] + v;
        tops[0] = larger(tops[0], part.keep(v, lowest));
      });
      const Block sum = sums[0] + sums[1], top = larger(tops[0], tops[1]);
      totals[n] = sum.a + sum.b;
      highest[n] = CPU_CAPABILITY::larger(top.a, top.b);
    }
  }

  // Adds the positions from kClosed on, the sums of parts in float64.
  template <size_t K>
  static void add_statistics(const T* x, int64_t positions, float* sums, float* max) {
    double all[K];
    float highest[K];
    std::copy_n(sums, K, all);
    for (int64_t begin = kClosed; begin < positions; begin += kClosed) {
      Vec totals[K], tops[K];
      plane_statistics(x + begin, positions, std::min(positions - begin, kClosed), totals, tops);
      CPU_CAPABILITY::sums(totals, sums);
      maxima(tops, highest);
      for (size_t n = 0; n < K; ++n) all[n] += sums[n];
      for (size_t n = 0; max && n < K; ++n)
        if (!(highest[n] <= max[n]) && !std::isnan(max[n])) max[n] = highest[n];
    }
    std::copy_n(all, K, sums);
  }

  template <size_t K>
  static void totals(const std::array<planes::Block, K>& blocks, float* out) {
    Vec vectors[K];
    for (size_t i = 0; i < K; ++i) vectors[i] = blocks[i].a + blocks[i].b;
    CPU_CAPABILITY::sums(vectors, out);
  }

  template <int K>
  static void add_positions(const T* x, int64_t positions, const std::array<float, K>& weights, float* sums,
                            float* tops, int64_t ahead) {
    using namespace planes;
    for_blocks<T>(positions, [&](int64_t p, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
      Block sum = load_block(sums + p), top = load_block(tops + p);
      for (int i = 0; i < K; ++i) {
        prefetch_ahead(x + i * positions + p, ahead);
        const Block t = Vec(weights[i]) * part.load(x + i * positions + p);
        sum = sum + t;
        top = larger(top, t);
      }
      store_block(sums + p, sum);
      store_block(tops + p, top);
    });
  }

  template <size_t K>
  static void add_neighbors(const T* x, Size size, int64_t c, const std::array<float, K>& weights, const float* filters,
                            const planes::CoarseRows& rows) {
    using namespace planes;
    const Lanes lanes(kRepeat<T>, rows.grid.left);
    std::array<const T*, K> plane;
    std::array<Taps, K> taps;
    for (size_t i = 0; i < K; ++i) {
      plane[i] = readable(x, size, c + i, i);
      taps[i] = lanes.taps(filters + 9 * i, 0.25f * weights[i]);
    }
    rows.for_pooled([&](int64_t pooled_row, float* own, auto even) {
      const int64_t start = 2 * pooled_row * size.W, width = rows.width;
      int64_t lane = 0;
      const auto add = [&](auto n) {
        for (; lane + n * kWidth <= width; lane += n * kWidth)
          add_lanes<n, even>(plane, start + lane / kWidth * kColumns<T>, size.W, taps, own + lane, width);
      };
      add(std::integral_constant<int, 2>());
      add(std::integral_constant<int, 1>());
    });
  }

  // N vectors of one pooled row of several channels, to the coarse rows that it meets.
  template <int N, bool kEven, size_t K>
  static void add_lanes(const std::array<const T*, K>& plane, int64_t start, int64_t W,
                        const std::array<planes::Taps, K>& taps, float* own, int64_t width) {
    using namespace planes;
    constexpr int kTaps = kEven ? 4 : 2;
    float* const targets[4] = {own, own + width, own - 2 * width, own - width};
    Vec sums[kTaps][N];
    for (int t = 0; t < kTaps; ++t)
      for (int n = 0; n < N; ++n) sums[t][n] = load(targets[t] + n * kWidth);
    for (size_t i = 0; i < K; ++i) {
      const T* row = plane[i] + start;
      for (int n = 0; n < N; ++n) {
        const Vec v = pooled(row + n * kColumns<T>, row + W + n * kColumns<T>);
        for (int t = 0; t < kTaps; ++t)
          sums[t][n] = at::vec::fmadd(kEven ? taps[i].even[t] : taps[i].odd[t % 2], v, sums[t][n]);
      }
    }
    for (int t = 0; t < kTaps; ++t)
      for (int n = 0; n < N; ++n) sums[t][n].store(targets[t] + n * kWidth);
  }

  static void neighbors_gradient(const T* x, Size size, const float* wp, const float* dneighbors, const float* filters,
                                 float* dwp, float* dfilters) {
    using namespace planes;
    const Grid grid(size);
    const CoarseRows rows(Scratch::kExpanded, grid, kRepeat<T>);
    const Lanes lanes(kRepeat<T>, grid.left);
    rows.expand(dneighbors);
    for_groups<2>(0, size.C, [&](auto k, int64_t c) {
      constexpr int K = k;
      std::array<const T*, K> plane;
      std::array<Taps, K> sums;
      for (int i = 0; i < K; ++i) {
        plane[i] = readable(x, size, c + i, i);
        sums[i].even.fill(Vec(0.f));
        sums[i].odd.fill(Vec(0.f));
      }
      rows.for_pooled([&](int64_t pooled_row, const float* own, auto even) {
        gather_lanes<even>(plane, 2 * pooled_row * size.W, size.W, own, rows.width, sums);
      });
      for (int i = 0; i < K; ++i) {
        const int64_t first = 9 * (c + i);
        const float along = filter_gradient(sums[i], lanes, filters + first, wp ? wp[c + i] : 1.f,
                                            dfilters ? dfilters + first : nullptr);
        if (dwp) dwp[c + i] += along;
      }
    });
  }

  // One pooled row of several channels times the coarse rows that it meets.
  template <bool kEven, size_t K>
  static void gather_lanes(const std::array<const T*, K>& plane, int64_t start, int64_t W, const float* own,
                           int64_t width, std::array<planes::Taps, K>& totals) {
    using namespace planes;
    constexpr int kTaps = kEven ? 4 : 2;
    const float* const sources[4] = {own, own + width, own - 2 * width, own - width};
    Vec sums[K][kTaps];
    for (size_t i = 0; i < K; ++i)
      for (int t = 0; t < kTaps; ++t) sums[i][t] = kEven ? totals[i].even[t] : totals[i].odd[t % 2];
    for (int64_t lane = 0, column = start; lane < width; lane += kWidth, column += kColumns<T>)
      for (size_t i = 0; i < K; ++i) {
        const Vec v = pooled(plane[i] + column, plane[i] + W + column);
        for (int t = 0; t < kTaps; ++t) sums[i][t] = at::vec::fmadd(load(sources[t] + lane), v, sums[i][t]);
      }
    for (size_t i = 0; i < K; ++i)
      for (int t = 0; t < kTaps; ++t) (kEven ? totals[i].even[t] : totals[i].odd[t % 2]) = sums[i][t];
  }

  // Adds to dfilter, if it is wanted; returns the gradient of the channel's weight.
  static float filter_gradient(const planes::Taps& sums, const planes::Lanes& lanes, const float* filter, float weight,
                               float* dfilter) {
    const Vec none(0.f);
    const std::array<std::array<Vec, 2>, 3> rows = {
        {{sums.even[0], sums.even[1]}, {sums.odd[0], sums.odd[1]}, {sums.even[2], sums.even[3]}}};
    float along = 0.f;
    for (const auto& [own, before] : rows) {
      const Vec shares[4] = {Vec::blendv(own, none, lanes.odd), Vec::blendv(none, own, lanes.odd),
                             Vec::blendv(before, none, lanes.odd), none};
      float gradients[4];
      CPU_CAPABILITY::sums(shares, gradients);
      for (int column = 0; column < 3; ++column) {
        along += 0.25f * gradients[column] * *filter++;
        if (dfilter) *dfilter++ += 0.25f * gradients[column] * weight;
      }
    }
    return along;
  }

  struct Inputs {
    const T* dz;
    const T* x;
    Size size;
    const float *w, *s, *wp, *dmean, *dmax, *position_max, *dneighbors, *filters;
    const float *dchannel_mean, *dchannel_max, *channel_max;
    T* dx;
    int64_t next;  // of bytes_to
  };

  // How the neighbour term's gradient lies in memory: absent, a value for each two columns, or for each column.
  enum class Up { kNone, kPairs, kColumns };

  template <Up kUp, bool kPositions>
  static void input_gradient(const Inputs& in, bool stream) {
    using namespace planes;
    const Size size = in.size;
    const int64_t positions = size.positions();
    const float* spatial = arranged<T>(Scratch::kSpatial, in.s, positions, 1.f);
    const float* elsewhere = nullptr;
    const float* at_max = nullptr;
    const float* tops = nullptr;
    if constexpr (kPositions) {
      std::tie(elsewhere, at_max) = position_gradients<T>(in.dmean, in.dmax, positions);
      tops = arranged<T>(Scratch::kPositionMax, in.position_max, positions, kNever);
    }
    const T* x = in.x;
    T* dx = in.dx;
    const T* dz = in.dz ? in.dz : zeros<T>(positions);
    const int64_t dz_plane = in.dz ? positions : 0;
    constexpr int64_t repeat = kUp == Up::kPairs ? 1 : 2;
    const Grid grid(size);
    const Lanes lanes(repeat, grid.left);
    const CoarseRows rows(Scratch::kExpanded, grid, repeat);
    if constexpr (kUp != Up::kNone) rows.expand(in.dneighbors);
    const int64_t up_size = padded(positions) + kBlock;
    float* up = kUp == Up::kNone ? nullptr : scratch<float>(Scratch::kUp, kTogether * up_size);
    for_groups<kTogether>(0, size.C, [&](auto k, int64_t c) C10_ALWAYS_INLINE_ATTRIBUTE {
      constexpr int K = k;
      if constexpr (kUp != Up::kNone) neighbors_up<K>(lanes, in.filters + 9 * c, size, rows, up, up_size);
      for (int64_t first = 0; first < positions; first += kChunk)
        for (int i = 0; i < K; ++i) {
          const T* from = x + (c + i) * positions + first;
          const T* gradient = dz + (c + i) * dz_plane + first;
          T* to = dx + (c + i) * positions + first;
          const Vec weight(in.w ? in.w[c + i] : 1.f), position_weight(in.wp ? in.wp[c + i] : 1.f);
          const float from_mean = in.dchannel_mean ? in.dchannel_mean[c + i] : 0.f;
          const Block channel_other = both(from_mean);
          const Block channel_most = both(in.channel_max ? from_mean + in.dchannel_max[c + i] : 0.f);
          const Block channel_top = both(in.channel_max ? in.channel_max[c + i] : kNever);
          const float* up_plane = kUp == Up::kNone ? nullptr : up + i * up_size;
          const int64_t count = std::min(kChunk, positions - first);
          for_blocks<T>(count, [&](int64_t q, const auto& part) C10_ALWAYS_INLINE_ATTRIBUTE {
            const int64_t p = first + q;
            prefetch_ahead(from + q, in.next);
            const Block v = part.load(from + q);
            const Block d = part.load(gradient + q);
            Block g = where(equal(v, channel_top), channel_most, channel_other);
            if constexpr (kPositions) {
              Block gt = where(equal(position_weight * v, load_block(tops + p)), load_block(at_max + p),
                               load_block(elsewhere + p));
              if constexpr (kUp != Up::kNone) gt = gt + load_up<kUp>(up_plane, p);
              g = fmadd(position_weight, gt, g);
            }
            g = fmadd(weight * load_block(spatial + p), d, g);
            part.store(to + q, g, stream);
          });
        }
    });
  }

  // Channels whose gradients of the neighbour term are computed at once, and positions of each of them that are done
  // before the next channel's: what belongs to these positions stays in the L1 cache, and each plane is written in long
  // runs, without which streaming stores to addresses 4096 bytes apart take several times as long.
  static constexpr int kTogether = 4;
  static constexpr int64_t kChunk = 1024;

  template <Up kUp>
  static planes::Block load_up(const float* up, int64_t p) {
    using namespace planes;
    if constexpr (kUp == Up::kPairs) {
      const Vec v = load(up + p / 2);
      return {v, v};
    }
    Block v = load_block(up + p);
    if constexpr (std::is_same_v<T, BFloat16>) std::tie(v.a, v.b) = at::vec::deinterleave2(v.a, v.b);
    return v;
  }

  // The neighbour term's gradient with respect to K planes of t. Whole vectors are stored, from the right to the left,
  // so that what stands behind a row's end is overwritten by the next row's begin.
  template <int K>
  static void neighbors_up(const planes::Lanes& lanes, const float* filters, Size size, const planes::CoarseRows& rows,
                           float* up, int64_t up_size) {
    using namespace planes;
    const int64_t pitch = rows.repeat == 1 ? size.W / 2 : size.W;
    std::array<Taps, K> taps;
    for (int i = 0; i < K; ++i) taps[i] = lanes.taps(filters + 9 * i, 0.25f);
    rows.for_pooled([&](int64_t pooled_row, const float* own, auto even) {
      float* out = up + 2 * pooled_row * pitch;
      for (int64_t lane = rows.width - kWidth; lane >= 0; lane -= kWidth) {
        const Vec first = load(own + lane), second = load(own + rows.width + lane);
        const Vec third = load(own - 2 * rows.width + lane), fourth = load(own - rows.width + lane);
        for (int i = 0; i < K; ++i) {
          Vec v;
          if constexpr (even) {
            const auto& t = taps[i].even;
            v = at::vec::fmadd(t[1], second, t[0] * first) + at::vec::fmadd(t[3], fourth, t[2] * third);
          } else {
            v = at::vec::fmadd(taps[i].odd[1], second, taps[i].odd[0] * first);
          }
          v.store(out + i * up_size + lane);
          v.store(out + i * up_size + pitch + lane);
        }
      }
    });
    const int64_t pooled_rows = 2 * rows.grid.h;
    for (int i = 0; i < K; ++i, up += up_size) {
      if (size.W % 2 == 1)
        for (int64_t row = 1; row <= pooled_rows; ++row) up[row * pitch - 1] = 0.f;
      std::fill(up + pooled_rows * pitch, up + size.H * pitch, 0.f);
    }
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace csham
