// What this build can do.
#include "avx512.h"

extern "C" int switchyard_has_bf16_products() {
#ifdef SWITCHYARD_BF16_PRODUCTS
  return 1;
#else
  return 0;
#endif
}
