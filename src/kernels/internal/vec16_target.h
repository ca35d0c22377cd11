// Macros of the 16-lane vocabulary (see vec16-inl.h).
#pragma once

#ifndef MR_TARGET  // the namespace of the target that the including file compiles for
#define MR_TARGET scalar
#endif
#define MR_INLINE [[gnu::always_inline]] inline
// Short loops over registers must be unrolled for the registers to be registers; -O2 alone does not do it.
#if defined(__clang__)
#define MR_UNROLL _Pragma("unroll")
#else
#define MR_UNROLL _Pragma("GCC unroll 32")
#endif
