// The kernels of sample.h for maps in NHWC order, x[p * C + c]: a value per channel is contiguous, one per position is
// not.
//
// filters and their gradient are (3, 3, C) here, and the range c0 .. c1 is always all channels. Four positions are
// taken at once, so that an array with a value per channel is read once for four reads of x: a square of 2 x 2 where the
// neighbour term pools one, consecutive positions elsewhere. Sums over positions then stay in L1 and sums over channels
// in registers.
#pragma once

#include "blocks.h"
#include "sample.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace csham {
namespace CPU_CAPABILITY {
namespace pixels {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <int N>
using Positions = std::array<int64_t, N>;

template <typename F>
__attribute__((always_inline)) inline void for_positions(int64_t p, int64_t end, F&& f) {
  for (; p + 4 <= end; p += 4) f(Positions<4>{p, p + 1, p + 2, p + 3});
  for (; p < end; ++p) f(Positions<1>{p});
}

// cell(i, j, positions) for the squares that are pooled, rest(positions) for what an odd side leaves over.
template <typename Cell, typename Rest>
__attribute__((always_inline)) inline void for_cells(const Size& size, Cell&& cell, Rest&& rest) {
  const int64_t W = size.W;
  for (int64_t i = 0; i < size.pooled_H(); ++i) {
    const int64_t row = 2 * i * W;
    for (int64_t j = 0; j < size.pooled_W(); ++j) {
      const int64_t p = row + 2 * j;
      cell(i, j, Positions<4>{p, p + 1, p + W, p + W + 1});
    }
    for (int64_t p = row + W - 1; W % 2 && p < row + 2 * W; p += W) rest(Positions<1>{p});
  }
  for_positions(2 * size.pooled_H() * W, size.positions(), rest);
}

// The taps of the 3 x 3 filters that read one pooled cell: kRows x kColumns of them, one or two on either axis, and for
// each another output.
template <int kRows, int kColumns>
struct Taps {
  static constexpr int kCount = kRows * kColumns;
  const float* gradient;  // of the last of these outputs, in a NeighborGradient
  int64_t stride;

  static constexpr int row(int k) { return kRows == 1 ? 1 : k / kColumns * 2; }
  static constexpr int column(int k) { return kColumns == 1 ? 1 : k % kColumns * 2; }
  static constexpr int tap(int k) { return 3 * row(k) + column(k); }
  float operator()(int k) const { return gradient[-(row(k) == 2 ? stride : 0) - (column(k) == 2 ? 1 : 0)]; }
};

struct NoTaps {
  static constexpr int kCount = 0;
};

// The gradient of the neighbour term's outputs, a quarter of it: taps then apply to the sum of a cell, not to its mean.
// Zeros stand before the first row and column, where taps of the outermost cells have no output.
class NeighborGradient {
 public:
  static int64_t floats(const Size& size) { return (size.coarse_H() + 1) * (size.coarse_W() + 1); }

  // Without dneighbors nothing is pooled.
  NeighborGradient(const Size& size, const float* dneighbors, Scratch& scratch)
      : size_(size), rows_(dneighbors ? size.pooled_H() : 0), stride_(size.coarse_W() + 1) {
    if (!dneighbors) return;
    float* memory = scratch.take(floats(size));
    memory_ = memory;
    std::fill_n(memory, floats(size), 0.f);
    for (int64_t i = 0; i < size.coarse_H(); ++i) {
      for (int64_t j = 0; j < size.coarse_W(); ++j) {
        memory[(i + 1) * stride_ + j + 1] = plain_nan(dneighbors[i * size.coarse_W() + j]) / 4;
      }
    }
  }

  // cell(taps, positions) for the squares that are pooled, rest(positions) for what an odd side leaves over.
  template <typename Cell, typename Rest>
  __attribute__((always_inline)) void for_cells(Cell&& cell, Rest&& rest) const {
    const int64_t W = size_.W;
    for (int64_t i = 0; i < rows_; ++i) {
      if ((i + size_.pooled_H()) % 2) for_row<1>(i, cell);
      else for_row<2>(i, cell);
      for (int64_t p = (2 * i + 1) * W - 1; W % 2 && p < (2 * i + 2) * W; p += W) rest(Positions<1>{p});
    }
    for_positions(2 * rows_ * W, size_.positions(), rest);
  }

 private:
  // From the left, cells are read by two columns of taps and by one in turn, an odd number of them beginning with one.
  template <int kRows, typename Cell>
  __attribute__((always_inline)) void for_row(int64_t i, Cell&& cell) const {
    const int64_t padding = size_.pooled_W() % 2, W = size_.W;
    const float* gradient = memory_ + ((i + size_.pooled_H() % 2) / 2 + 1) * stride_ + 1;
    int64_t p = 2 * i * W - 2 * padding;
    for (int64_t j = -padding; j < size_.pooled_W(); j += 2, p += 4, ++gradient) {
      if (j >= 0) cell(Taps<kRows, 2>{gradient, stride_}, Positions<4>{p, p + 1, p + W, p + W + 1});
      if (j + 1 < size_.pooled_W()) {
        cell(Taps<kRows, 1>{gradient, stride_}, Positions<4>{p + 2, p + 3, p + W + 2, p + W + 3});
      }
    }
  }

  Size size_;
  int64_t rows_, stride_;
  const float* memory_ = nullptr;
};

template <typename F>
void with_bool(bool value, F&& f) {
  if (value) return f(std::true_type());
  return f(std::false_type());
}

// The neighbour term's forward pass: three rows of pooled cells, of which the convolution reads all taps of an output.
class PooledRows {
 public:
  // One block more than the channels, so that cells do not all fall into the same few sets of the L1 cache.
  static int64_t stride(const Size& size) { return padded(size.C) + kBlock; }
  static int64_t floats(const Size& size) { return 3 * (size.pooled_W() + 2) * stride(size); }

  // A column of zeros stands before the cells and another behind them.
  PooledRows(const Size& size, float* memory) : size_(size), stride_(stride(size)), memory_(memory) {
    for (int64_t i = 0; i < 3; ++i) {
      std::fill_n(cell(i, -1), stride_, 0.f);
      std::fill_n(cell(i, size.pooled_W()), stride_, 0.f);
    }
  }

  // Those of a square of blocks: one, or two of two positions in a block each.
  template <typename Channels>
  std::array<float*, 2> cells(int64_t i, int64_t j, Channels) const {
    return kTwo<Channels> ? std::array{cell(i, 2 * j), cell(i, 2 * j + 1)} : std::array{cell(i, j), cell(i, j)};
  }
  float* cell(int64_t i, int64_t j) const { return memory_ + ((i % 3) * (size_.pooled_W() + 2) + j + 1) * stride_; }

  // After row i of cells: the outputs that needed no more than that.
  void convolve_after(int64_t i, const float* const* filters, float* neighbors) const {
    const int64_t end = i + size_.pooled_H() % 2;
    if (end >= 2 && end % 2 == 0) convolve(end / 2 - 1, filters, neighbors);
    if (i + 1 == size_.pooled_H()) convolve(size_.coarse_H() - 1, filters, neighbors);
  }

 private:
  void convolve(int64_t oi, const float* const* filters, float* neighbors) const {
    const int64_t coarse_W = size_.coarse_W();
    for (int64_t oj = 0; oj < coarse_W; oj += 4) {
      float outputs[4];
      convolve4(oi, oj, filters, outputs);
      for (int64_t n = 0; n < std::min<int64_t>(4, coarse_W - oj); ++n) {
        neighbors[oi * coarse_W + oj + n] = outputs[n] / 4;
      }
    }
  }

  // Four outputs in a row, the last of them repeated where there are fewer.
  void convolve4(int64_t oi, int64_t oj, const float* const* filters, float* outputs) const {
    const int64_t top = 2 * oi - size_.pooled_H() % 2, left = size_.pooled_W() % 2;
    const int64_t first = std::max<int64_t>(0, -top), end = std::min<int64_t>(3, size_.pooled_H() - top);
    Pair total[4] = {Pair(0.f), Pair(0.f), Pair(0.f), Pair(0.f)};
    int64_t offset[4];
    for (int64_t n = 0; n < 4; ++n) offset[n] = 2 * (std::min(oj + n, size_.coarse_W() - 1) - oj) * stride_;
    for (int64_t ki = first; ki < end; ++ki) {
      for (int64_t kj = 0; kj < 3; ++kj) {
        const float* cells = cell(top + ki, 2 * oj - left + kj);
        const float* filter = filters[ki * 3 + kj];
        for (int64_t c = 0; c < size_.C; c += kBlock) {
          const Pair f = load_block(filter + c);
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) total[n] = fmadd(f, load_block(cells + offset[n] + c), total[n]);
        }
      }
    }
    const Vec totals[4] = {total[0].a + total[0].b, total[1].a + total[1].b, total[2].a + total[2].b,
                           total[3].a + total[3].b};
    sums(totals, outputs);
  }

  Size size_;
  int64_t stride_;
  float* memory_;
};

template <typename T>
struct ChannelsLast {
  // As many positions as fill whole blocks are taken for one position with more channels, whose sums are added up at
  // the end: no block has a tail, and few channels make enough independent sums.
  static void channel_statistics(const T* x, Size size, int64_t /*c0*/, int64_t /*c1*/, float* mean, float* max) {
    const int64_t C = size.C, positions = size.positions();
    int64_t fold = kBlock / std::gcd(C, kBlock);
    fold *= std::max<int64_t>(1, 8 * kBlock / (fold * C));
    const int64_t width = fold * C, rows = positions / fold;
    Scratch scratch(4 * width);
    float* sum = scratch.take(width);
    float* largest = scratch.take(width);
    std::fill_n(sum, width, 0.f);
    std::fill_n(largest, width, -kInfinity);
    // A long sum would lose digits: it is closed every so many rows, and the parts are added up in float64.
    constexpr int64_t kClosed = 4096;
    std::vector<double> closed(rows > kClosed ? width : 0);
    for (int64_t row = 0; row < rows;) {
      const int64_t end = std::min(rows, row + kClosed);
      for (; row + 8 <= end; row += 8) add_rows<8>(x + row * width, width, sum, largest);
      for (; row < end; ++row) add_rows<1>(x + row * width, width, sum, largest);
      for (size_t i = 0; i < closed.size(); ++i) closed[i] += std::exchange(sum[i], 0.f);
    }
    std::copy(closed.begin(), closed.end(), sum);
    float* sum_in_order = scratch.take(width);
    float* largest_in_order = scratch.take(width);
    from_lanes<T>(sum, width, sum_in_order);
    from_lanes<T>(largest, width, largest_in_order);
    fold_rows(sum_in_order, largest_in_order, C, std::min(fold, positions), x + rows * width, positions - rows * fold);
    for (int64_t c = 0; c < C; ++c) mean[c] = sum_in_order[c] / static_cast<float>(positions);
    if (max) std::copy_n(largest_in_order, C, max);
  }

  static void position_statistics(const T* x, Size size, const float* wp, const float* filters, int64_t /*c0*/,
                                  int64_t /*c1*/, float* mean, float* max, float* neighbors, const T* next) {
    const int64_t further = bytes_to(next, x);
    const View<T> view(size);
    Scratch scratch(10 * padded(size.C) + PooledRows::floats(size));
    const Rows<T> rows(x, view.size.C, view.size.positions());
    const float* weights = to_lanes(wp, view, 1.f, 0.f, scratch);
    const float* taps[9];
    for (int64_t k = 0; filters && k < 9; ++k) taps[k] = to_lanes(filters + k * size.C, view, 0.f, 0.f, scratch);
    with_channels<true>(view, [&](auto C) {
      const auto plain = [&](const auto& positions) __attribute__((always_inline)) {
        reduce_channels<false>(rows, C, weights, positions, {}, mean, max, further);
      };
      if (!filters) return for_positions(0, view.size.positions(), plain);
      const PooledRows pooled(size, scratch.take(PooledRows::floats(size)));
      const auto pool = [&](int64_t i, int64_t j, const Positions<4>& positions) __attribute__((always_inline)) {
        reduce_channels<true>(rows, C, weights, positions, pooled.cells(i, j, C), mean, max, further);
        if (j + 1 == view.size.pooled_W()) pooled.convolve_after(i, taps, neighbors);
      };
      for_cells(view.size, pool, plain);
    });
  }

  static void scale(const T* x, Size size, const float* w, const float* s, const T* shortcut, bool relu, T* y,
                    bool stream) {
    const View<T> view(size);
    const int64_t C = view.size.C, positions = view.size.positions();
    Scratch scratch(5 * padded(C) + size.positions());
    const float* weights = to_lanes(w, view, 1.f, 0.f, scratch);
    s = plain(s, 1.f, size.positions(), scratch);
    const Rows<T> x_rows(x, C, positions), shortcut_rows(shortcut ? shortcut : x, C, positions);
    const OutputRows<T, true> y_rows(y, C, stream, scratch);
    with_bool(shortcut != nullptr, [&](auto add) {
      constexpr bool kShortcut = decltype(add)::value;
      with_bool(relu, [&](auto clamp) {
        constexpr bool kRelu = decltype(clamp)::value;
        with_channels<!kShortcut && !kRelu>(view, [&](auto channels) {
          for_positions(0, positions, [&](const auto& group) __attribute__((always_inline)) {
            scale_rows<kShortcut, kRelu>(x_rows, channels, weights, s, shortcut_rows, y_rows, group);
          });
        });
      });
    });
    if (stream) finish_streams();
  }

  static void scale_backward(const T* dy, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* position_max, const T* y, T* dz, float* dw, float* ds, float* ties) {
    const View<T> view(size);
    const int64_t C = view.size.C, positions = view.size.positions();
    Scratch scratch(ScaleBackward::Table::floats(C) + 4 * padded(C) + 2 * size.positions());
    ScaleBackward k{Rows<T>(dy, C, positions),
                    Rows<T>(x, C, positions),
                    Rows<T>(y ? y : x, C, positions),
                    typename ScaleBackward::Table(view, scratch),
                    plain(s, 1.f, size.positions(), scratch),
                    position_max,
                    tail_mask<T>(C),
                    ds ? ds : scratch.take(size.positions()),
                    ties};
    k.table.put(ScaleBackward::kW, w, 1.f, 0.f);
    k.table.put(ScaleBackward::kWp, wp, 1.f, kNaN);
    k.table.put(ScaleBackward::kDw, nullptr, 0.f, 0.f);
    const OutputRows<T> dz_rows(dz, C, false, scratch);
    with_bool(y != nullptr, [&](auto relu) {
      constexpr bool kRelu = decltype(relu)::value;
      with_bool(ties != nullptr, [&](auto count) {
        constexpr bool kTies = decltype(count)::value;
        with_channels<!kRelu && kTies>(view, [&](auto channels) {
          for_positions(0, positions, [&](const auto& group) __attribute__((always_inline)) {
            k.template add<kRelu, kTies>(group, channels, dz_rows);
          });
        });
      });
    });
    if (dw) k.table.get(ScaleBackward::kDw, dw);
  }

  static void statistics_gradient(const T* x, Size size, const float* wp, const float* dmean, const float* dmax,
                                  const float* position_max, const float* dneighbors, const float* filters,
                                  const float* channel_max, float* dwp, float* dfilters, float* ties, const T* next) {
    const View<T> view(size);
    const bool spatial = position_max && (dwp || dfilters);
    const bool neighbors = spatial && filters && dneighbors;
    if (!spatial && !ties) {
      if (dwp) std::fill_n(dwp, size.C, 0.f);
      return;
    }
    using K = StatisticsGradient;
    Scratch scratch(K::Table::floats(size.C) + 2 * padded(size.C) + 2 * size.positions() +
                    NeighborGradient::floats(size));
    K k{Rows<T>(x, view.size.C, view.size.positions()), view, typename K::Table(view, scratch),
        SpatialGradient(dmean, dmax, position_max, size.positions(), spatial, scratch), bytes_to(next, x)};
    k.table.put(K::kWp, wp, 1.f, kNaN);
    k.table.put(K::kMaximum, channel_max, kNaN, kNaN);
    for (int sum = K::kDwp; sum < (neighbors ? K::kArrays : K::kFilters); ++sum) k.table.put(sum, nullptr, 0.f, 0.f);
    const float* outer = neighbors ? dneighbors : nullptr;
    if (spatial) k.template run<true>(size, outer, scratch);
    else k.template run<false>(size, outer, scratch);
    if (neighbors) k.add_neighbors(filters, wp, dwp, dfilters, scratch);
    else if (dwp) k.table.get(K::kDwp, dwp);
    if (ties) k.get_ties(ties);
  }

  static void input_gradient(const T* dz, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* dmean, const float* dmax, const float* position_max, const float* dneighbors,
                             const float* filters, const float* dchannel_mean, const float* dchannel_max,
                             const float* channel_max, T* dx, bool stream, const T* next) {
    // Without dz the same row of zeros is read at every position, which blocks of two have no use for.
    const View<T> view(size, dz != nullptr);
    const int64_t C = view.size.C, positions = view.size.positions(), width = padded(C);
    const bool spatial = position_max != nullptr;
    const bool neighbors = spatial && filters && dneighbors;
    using K = InputGradient;
    Scratch scratch(K::Table::floats(C) + 5 * width + 3 * size.positions() + NeighborGradient::floats(size));
    T* zeros = reinterpret_cast<T*>(scratch.take(width));
    std::fill_n(zeros, width, T(0.f));
    K k{dz ? Rows<T>(dz, C, positions) : Rows<T>(zeros), Rows<T>(x, C, positions), view,
        typename K::Table(view, scratch), plain(s, 1.f, size.positions(), scratch),
        SpatialGradient(dmean, dmax, position_max, size.positions(), spatial, scratch), bytes_to(next, x)};
    k.table.put(K::kW, w, 1.f, 0.f);
    k.table.put(K::kWp, wp, 1.f, 0.f);
    k.table.put(K::kDmean, dchannel_mean, 0.f, 0.f);
    k.table.put(K::kDmax, dchannel_max, 0.f, 0.f);
    k.table.put(K::kMaximum, channel_max, kNaN, kNaN);
    for (int tap = 0; neighbors && tap < 9; ++tap) k.table.put(K::kFilters + tap, filters + tap * size.C, 0.f, 0.f);
    const OutputRows<T> dx_rows(dx, C, stream, scratch);
    const float* outer = neighbors ? dneighbors : nullptr;
    if (spatial) k.template run<true, true>(size, outer, dx_rows, scratch);
    else if (channel_max && dchannel_max) k.template run<false, true>(size, outer, dx_rows, scratch);
    else k.template run<false, false>(size, outer, dx_rows, scratch);
    if (stream) finish_streams();
  }

 private:
  // Values per position without unusual NaNs, or `neutral` throughout where there are none.
  static const float* plain(const float* values, float neutral, int64_t count, Scratch& scratch) {
    if (std::is_same_v<T, float> && values) return values;
    float* plain_values = scratch.take(count);
    if (values) std::transform(values, values + count, plain_values, [](float value) { return plain_nan(value); });
    else std::fill_n(plain_values, count, neutral);
    return plain_values;
  }

  // A group of consecutive positions, or of a cell's, in blocks: the same, or of two positions each.
  template <size_t N, typename Channels>
  __attribute__((always_inline)) static auto in_blocks(const std::array<int64_t, N>& positions, Channels) {
    if constexpr (!kTwo<Channels>) return positions;
    else if constexpr (N == 4) return Positions<2>{positions[0] / 2, positions[2] / 2};
    else return Positions<1>{positions[0] / 2};
  }

  // f(positions, taps) for all positions, with taps where a cell is pooled and the neighbour term has a gradient.
  template <bool kSpatial, typename F>
  __attribute__((always_inline)) static void for_neighbors(const Size& size, const float* dneighbors, Scratch& scratch,
                                                           F&& f) {
    const auto plain = [&](const auto& group) __attribute__((always_inline)) { f(group, NoTaps()); };
    if constexpr (kSpatial) {
      const auto cell = [&](const auto& taps, const auto& group) __attribute__((always_inline)) { f(group, taps); };
      NeighborGradient(size, dneighbors, scratch).for_cells(cell, plain);
    } else {
      for_positions(0, size.positions(), plain);
    }
  }

  // While the block at channel c of four positions is read, asks for as much memory 4096 bytes further on, and `next`
  // bytes further on, if they are not 0, which may take as long as this image does.
  template <bool kCell, size_t N>
  __attribute__((always_inline)) static void prefetch_ahead(const std::array<const T*, N>& x, int64_t c,
                                                            int64_t next = 0) {
    prefetch_like<kCell, kFirst>(x, c, 4096);
    if (next != 0) prefetch_like<kCell, kSecond>(x, c, next);
  }

  template <bool kCell, int kCache, size_t N>
  __attribute__((always_inline)) static void prefetch_like(const std::array<const T*, N>& x, int64_t c, int64_t ahead) {
    constexpr int64_t kBytes = kBlock * sizeof(T);
    if constexpr (N == 4 && kCell) {
      prefetch<2 * kBytes, kCache>(reinterpret_cast<const char*>(x[0] + 2 * c) + ahead);
      prefetch<2 * kBytes, kCache>(reinterpret_cast<const char*>(x[2] + 2 * c) + ahead);
    } else if constexpr (N == 4) {
      prefetch<4 * kBytes, kCache>(reinterpret_cast<const char*>(x[0] + 4 * c) + ahead);
    } else if constexpr (N == 2) {
      for (const T* row : x) prefetch<kBytes, kCache>(reinterpret_cast<const char*>(row) + ahead);
    }
  }

  // Adds N rows to the sums and maxima of their columns.
  template <int N>
  static void add_rows(const T* x, int64_t width, float* sum, float* largest) {
    for (int64_t c = 0; c < width; c += kBlock) {
      prefetch<N * kBlock * sizeof(T), kFirst>(x + N * (width + c));
      Pair total = load_block(x + c), most = total;
#pragma GCC unroll 8
      for (int n = 1; n < N; ++n) {
        const Pair value = load_block(x + n * width + c);
        total = total + value;
        most = larger(most, value);
      }
      store_block(sum + c, load_block(static_cast<const float*>(sum + c)) + total);
      store_block(largest + c, larger(load_block(static_cast<const float*>(largest + c)), most));
    }
  }

  // Joins the statistics of `fold` positions, and `count` more positions of x, in those of the first.
  static void fold_rows(float* sum, float* largest, int64_t C, int64_t fold, const T* x, int64_t count) {
    for (int64_t i = 1; i < fold; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        sum[c] += sum[i * C + c];
        largest[c] = std::max(largest[c], largest[i * C + c]);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        const float value = static_cast<float>(x[i * C + c]);
        sum[c] += value;
        largest[c] = std::max(largest[c], value);
      }
    }
  }

  template <bool kShortcut, bool kRelu, typename Channels, size_t N>
  __attribute__((always_inline)) static void scale_rows(const Rows<T>& x_rows, Channels C, const float* weights,
                                                        const float* s, const Rows<T>& shortcut_rows,
                                                        const OutputRows<T, true>& y_rows,
                                                        const std::array<int64_t, N>& positions) {
    const auto x = x_rows(positions, C), shortcut = kShortcut ? shortcut_rows(positions, C) : x;
    const auto y = y_rows(positions, C);
    Vec weight[N];
    for (size_t n = 0; n < N; ++n) weight[n] = in_lanes<Channels>(s, positions[n]);
    for (int64_t c = 0; c < C; c += kBlock) {
      prefetch_ahead<false>(x, c);
      if constexpr (kShortcut) prefetch_ahead<false>(shortcut, c);
      const Pair weight_c = load_block(weights + c);
#pragma GCC unroll 4
      for (size_t n = 0; n < N; ++n) {
        const Pair factor = weight_c * weight[n], x_c = load_block(x[n] + c);
        Pair value = factor * x_c;
        // Rounded twice, as where the scaling and the sum are two operations.
        if constexpr (kShortcut) value = value + load_block(shortcut[n] + c);
        if constexpr (kRelu) value = larger(value, Pair(0.f));
        y_rows.store(y[n] + c, value);
      }
    }
    y_rows.finish(positions);
  }

  // The mean and maximum over channels at N positions and, for a cell of four, the sum of the four.
  template <bool kPool, typename Channels, size_t N>
  __attribute__((always_inline)) static void reduce_channels(const Rows<T>& rows, Channels C, const float* weights,
                              const std::array<int64_t, N>& positions, const std::array<float*, 2>& cells, float* mean,
                              float* max, int64_t next) {
    const auto x = rows(positions, C);
    Vec total[N], most[N];
    for (size_t n = 0; n < N; ++n) {
      total[n] = Vec(0.f);
      most[n] = Vec(-kInfinity);
    }
    const auto block = [&](int64_t c, auto tail, const Pair& mask) __attribute__((always_inline)) {
      prefetch_ahead<kPool>(x, c, next);
      const Pair weight = load_block(weights + c);
      // Of two positions in a block, blocks above each other make a cell.
      constexpr size_t kCells = kTwo<Channels> ? 2 : 1;
      Pair pooled[kCells];
#pragma GCC unroll 4
      for (size_t n = 0; n < N; ++n) {
        Pair t = weight * load_block(x[n] + c);
        Pair candidate = t;
        if constexpr (tail) {
          t = t & mask;
          candidate = select(mask, t, Pair(-kInfinity));
        }
        if constexpr (kPool) pooled[n % kCells] = n < kCells ? t : pooled[n % kCells] + t;
        total[n] = total[n] + t.a + t.b;
        most[n] = larger(larger(candidate.a, candidate.b), most[n]);
      }
      for (size_t i = 0; kPool && i < kCells; ++i) store_block(cells[i] + c, pooled[i]);
    };
    int64_t c = 0;
    for (; c + kBlock <= C; c += kBlock) block(c, std::false_type(), Pair());
    if (c < C) block(c, std::true_type(), tail_mask<T>(C));
    write_sums<Channels>(total, positions, mean, 1.f / static_cast<float>(kTwo<Channels> ? C / 2 : C));
    write_maxima<Channels>(most, positions, max);
  }

  struct ScaleBackward {
    enum { kW, kWp, kDw, kArrays };
    using Table = ChannelTable<T, kArrays>;
    Rows<T> dy_rows, x_rows, y_rows;
    Table table;
    const float *s, *position_max;
    Pair mask;
    float *ds, *ties;

    template <bool kRelu, bool kTies, typename Channels, size_t N>
    __attribute__((always_inline)) void add(const std::array<int64_t, N>& positions, Channels C,
                                            const OutputRows<T>& dz_rows) const {
      const Table table = this->table;  // a copy, which a store to memory cannot change in the compiler's eyes
      const auto dy = dy_rows(positions, C), x = x_rows(positions, C), y = kRelu ? y_rows(positions, C) : x;
      const auto dz = kRelu ? dz_rows(positions, C) : std::array<T*, N>();
      Vec scale[N], most[N], total[N], equal[N];
      for (size_t n = 0; n < N; ++n) {
        scale[n] = in_lanes<Channels>(s, positions[n]);
        if constexpr (kTies) most[n] = in_lanes<Channels>(position_max, positions[n]);
        total[n] = equal[n] = Vec(0.f);
      }
      const auto block = [&](int64_t c, auto tail) __attribute__((always_inline)) {
        prefetch_ahead<false>(dy, c);
        prefetch_ahead<false>(x, c);
        const Pair w_c = table(c, kW), wp_c = table(c, kWp);
        Pair dw_c = table(c, kDw);
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          Pair gradient = load_block(dy[n] + c);
          if constexpr (kRelu) {
            gradient = passed(load_block(y[n] + c), gradient);
            store_block(dz[n] + c, gradient);
          }
          const Pair x_c = load_block(x[n] + c);
          Pair product = gradient * x_c;
          if constexpr (tail) product = product & mask;
          dw_c = fmadd(product, scale[n], dw_c);
          total[n] = at::vec::fmadd(product.b, w_c.b, at::vec::fmadd(product.a, w_c.a, total[n]));
          if constexpr (kTies) {
            const Pair t = wp_c * x_c;
            equal[n] = count_equal(count_equal(equal[n], t.a, most[n]), t.b, most[n]);
          }
        }
        store_block(table.at(c, kDw), dw_c);
      };
      int64_t c = 0;
      for (; c + kBlock <= C; c += kBlock) block(c, std::false_type());
      if (c < C) block(c, std::true_type());
      if constexpr (kRelu) dz_rows.finish(positions);
      write_sums<Channels>(total, positions, ds);
      if constexpr (kTies) {
        for (size_t n = 0; n < N; ++n) equal[n] = counted(equal[n]);
        write_sums<Channels>(equal, positions, ties);
      }
    }
  };

  // What the positions' mean and maximum give to the gradient of t: `other`, or `most` where t is the maximum.
  struct SpatialGradient {
    const float *maximum, *other, *most;

    SpatialGradient(const float* dmean, const float* dmax, const float* position_max, int64_t positions, bool wanted,
                    Scratch& scratch)
        : maximum(position_max), other(dmean), most(nullptr) {
      if (!wanted) return;
      other = plain(dmean, 0.f, positions, scratch);
      float* total = scratch.take(positions);
      for (int64_t p = 0; p < positions; ++p) total[p] = other[p] + (dmax ? plain_nan(dmax[p]) : 0.f);
      most = total;
    }

    // The gradient of t at one position.
    struct AtPosition {
      Vec maximum, other, most;
      __attribute__((always_inline)) Pair operator()(const Pair& t) const {
        return select_equal(t, maximum, most, other);
      }
    };

    template <bool kWanted, typename Channels, size_t N>
    __attribute__((always_inline)) std::array<AtPosition, N> at(const std::array<int64_t, N>& positions) const {
      std::array<AtPosition, N> gradients;
      for (size_t n = 0; kWanted && n < N; ++n) {
        const int64_t p = positions[n];
        gradients[n] = {in_lanes<Channels>(maximum, p), in_lanes<Channels>(other, p), in_lanes<Channels>(most, p)};
      }
      return gradients;
    }
  };

  struct StatisticsGradient {
    // kFilters: their gradient in terms of x, that is, without the factor wp.
    enum { kWp, kMaximum, kDwp, kTies, kFilters, kArrays = kFilters + 9 };
    using Table = ChannelTable<T, kArrays>;
    Rows<T> rows;
    View<T> view;
    Table table;
    SpatialGradient gradient;
    int64_t next;  // of bytes_to

    template <bool kSpatial>
    void run(const Size& size, const float* dneighbors, Scratch& scratch) const {
      with_channels<kSpatial>(view, [&](auto C) {
        const auto add_group = [&](const auto& group, const auto& taps) __attribute__((always_inline)) {
          add<kSpatial>(in_blocks(group, C), C, taps);
        };
        for_neighbors<kSpatial>(size, dneighbors, scratch, add_group);
      });
    }

    template <bool kSpatial, typename Channels, typename CellTaps, size_t N>
    __attribute__((always_inline)) void add(const std::array<int64_t, N>& positions, Channels C,
                                            const CellTaps& taps) const {
      const Table table = this->table;
      const auto x = rows(positions, C);
      const auto spatial = gradient.template at<kSpatial, Channels>(positions);
      constexpr int kTaps = CellTaps::kCount;
      Vec outer[kTaps + 1];
      if constexpr (kTaps > 0) for (int k = 0; k < kTaps; ++k) outer[k] = Vec(taps(k));
      for (int64_t c = 0; c < C; c += kBlock) {
        prefetch_ahead<(kTaps > 0)>(x, c, next);
        const Pair wp_c = table(c, kWp), maximum_c = table(c, kMaximum);
        Pair dwp_c = table(c, kDwp), count = table(c, kTies), cell;
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          const Pair x_c = load_block(x[n] + c);
          if constexpr (kSpatial) dwp_c = fmadd(spatial[n](wp_c * x_c), x_c, dwp_c);
          if constexpr (kTaps > 0) cell = n == 0 ? x_c : cell + x_c;
          count = count_equal(count, x_c, maximum_c);
        }
        if constexpr (kSpatial) store_block(table.at(c, kDwp), dwp_c);
        store_block(table.at(c, kTies), count);
        if constexpr (kTaps > 0) {
#pragma GCC unroll 4
          for (int k = 0; k < kTaps; ++k) {
            const int filter = kFilters + taps.tap(k);
            store_block(table.at(c, filter), fmadd(cell, outer[k], table(c, filter)));
          }
        }
      }
    }

    // t is linear in wp, so the neighbour term's gradient of wp follows from the filters'.
    void add_neighbors(const float* filters, const float* wp, float* dwp, float* dfilters, Scratch& scratch) const {
      const int64_t C = view.channels;
      float* product = scratch.take(padded(C));
      if (dwp) table.get(kDwp, dwp);
      for (int tap = 0; tap < 9; ++tap) {
        table.get(kFilters + tap, product);
        for (int64_t c = 0; dwp && c < C; ++c) dwp[c] += filters[tap * C + c] * product[c];
        for (int64_t c = 0; dfilters && c < C; ++c) dfilters[tap * C + c] += (wp ? wp[c] : 1.f) * product[c];
      }
    }

    void get_ties(float* ties) const {
      for (int64_t c = 0; c < view.channels; c += kBlock) store_block(table.at(c, kTies), counted(table(c, kTies)));
      table.get(kTies, ties);
    }
  };

  struct InputGradient {
    enum { kW, kWp, kDmean, kDmax, kMaximum, kFilters, kArrays = kFilters + 9 };
    using Table = ChannelTable<T, kArrays>;
    Rows<T> dz_rows, x_rows;
    View<T> view;
    Table table;
    const float* s;
    SpatialGradient gradient;
    int64_t next;  // of bytes_to

    template <bool kSpatial, bool kMax>
    void run(const Size& size, const float* dneighbors, const OutputRows<T>& dx_rows, Scratch& scratch) const {
      const auto run_channels = [&](auto C) {
        const auto write_group = [&](const auto& group, const auto& taps) __attribute__((always_inline)) {
          write<kSpatial, kMax>(in_blocks(group, C), C, taps, dx_rows);
        };
        for_neighbors<kSpatial>(size, dneighbors, scratch, write_group);
      };
      if (dz_rows.repeated()) run_channels(size.C);
      else with_channels<kSpatial>(view, run_channels);
    }

    template <bool kSpatial, bool kMax, typename Channels, typename CellTaps, size_t N>
    __attribute__((always_inline)) void write(const std::array<int64_t, N>& positions, Channels C,
                                              const CellTaps& taps, const OutputRows<T>& dx_rows) const {
      const Table table = this->table;
      const auto x = x_rows(positions, C), dz = dz_rows(positions, C);
      const auto dx = dx_rows(positions, C);
      const auto spatial = gradient.template at<kSpatial, Channels>(positions);
      constexpr int kTaps = CellTaps::kCount;
      Vec scale[N], outer[kTaps + 1];
      for (size_t n = 0; n < N; ++n) scale[n] = in_lanes<Channels>(s, positions[n]);
      if constexpr (kTaps > 0) for (int k = 0; k < kTaps; ++k) outer[k] = Vec(taps(k));
      for (int64_t c = 0; c < C; c += kBlock) {
        prefetch_ahead<(kTaps > 0)>(dz, c);
        prefetch_ahead<(kTaps > 0)>(x, c, next);
        const Pair w_c = table(c, kW), wp_c = table(c, kWp);
        // What all positions share: of the channel's mean and, through the cell, of the neighbours.
        Pair shared = table(c, kDmean);
        if constexpr (kTaps > 0) {
          Pair up = table(c, kFilters + taps.tap(0)) * outer[0];
#pragma GCC unroll 4
          for (int k = 1; k < kTaps; ++k) up = fmadd(table(c, kFilters + taps.tap(k)), outer[k], up);
          shared = fmadd(up, wp_c, shared);
        }
        // The same where x is the channel's maximum.
        const Pair most = kMax ? shared + table(c, kDmax) : shared;
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          const Pair x_c = load_block(x[n] + c);
          Pair value = kMax ? select_equal(x_c, table(c, kMaximum), most, shared) : shared;
          value = fmadd(w_c * scale[n], load_block(dz[n] + c), value);
          if constexpr (kSpatial) value = fmadd(spatial[n](wp_c * x_c), wp_c, value);
          dx_rows.store(dx[n] + c, value);
        }
      }
      dx_rows.finish(positions);
    }
  };
};

}  // namespace pixels
}  // namespace CPU_CAPABILITY
}  // namespace csham
