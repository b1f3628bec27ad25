// e^x for a vector of floats, written once for every instruction set that has no instruction for it.
#pragma once

namespace jg {

// 2^n * e^f with |f| <= ln(2) / 2: a polynomial of degree 6, relative error below 2e-7. ln(2) is subtracted in two
// parts, so that f keeps its last bits (Cody and Waite). Isa offers clamp(x, low, high), round(x) to the nearest
// whole number, and scale(p, n) = p * 2^n beside the primitives that kernels.inl lists.
template <typename Isa>
inline typename Isa::Float exponential(typename Isa::Float x) {
  x = Isa::clamp(x, -87.0f, 88.0f);
  const auto n = Isa::round(Isa::mul(x, Isa::set(1.44269504f)));
  auto f = Isa::fma(n, Isa::set(-0.693359375f), x);
  f = Isa::fma(n, Isa::set(2.12194440e-4f), f);
  auto p = Isa::set(1.0f / 720);
  p = Isa::fma(p, f, Isa::set(1.0f / 120));
  p = Isa::fma(p, f, Isa::set(1.0f / 24));
  p = Isa::fma(p, f, Isa::set(1.0f / 6));
  p = Isa::fma(p, f, Isa::set(0.5f));
  p = Isa::fma(p, f, Isa::set(1.0f));
  p = Isa::fma(p, f, Isa::set(1.0f));
  return Isa::scale(p, n);
}

}  // namespace jg
