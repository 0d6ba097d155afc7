// What this build can do.
#include "avx2.h"

// Columns of the panels that its products of bfloat16 take weights in; 0 where it has none.
extern "C" int switchyard_panel() {
#if defined(SWITCHYARD_BF16_PRODUCTS) || defined(SWITCHYARD_BF16_WIDENED)
  return PANEL;
#else
  return 0;
#endif
}
