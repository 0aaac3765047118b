/* start.c: the reset of a Cortex-M, its semihosting and its clock, and what the runtime calls of the
 * C library. */
#include "board.h"

#include <string.h>

extern uint32_t stack_top[];
int main(void);
void reset(void);

enum { PAINT = 0x5A5A5A5A, PAINTED_WORDS = 4096 };

static void fault(void) { board_exit(99); }

typedef void handler(void);
__attribute__((section(".vectors"), used)) static handler *const vectors[16] = {
    (handler *)(uintptr_t)stack_top, reset, fault, fault, fault, fault, fault};

__attribute__((used, noreturn)) static void start(void) {
  volatile uint32_t *below = (uint32_t *)__builtin_frame_address(0) - 64;
  for (uint32_t k = 0; k < PAINTED_WORDS; k++) below[-(int32_t)k] = PAINT;
  board_exit(main());
}

/* The FPU is off at first: CPACR. */
__attribute__((naked)) void reset(void) {
  __asm__("ldr r0, =0xE000ED88\n ldr r1, [r0]\n orr r1, #(0xF << 20)\n str r1, [r0]\n"
          "dsb\n isb\n b start\n");
}

uint32_t board_stack_bytes(void) {
  const uint32_t *at = stack_top - PAINTED_WORDS;
  while (*at == PAINT) at++;
  return (uint32_t)(stack_top - at) * 4;
}

/* ---- semihosting --------------------------------------------------------------------------- */

enum { OPEN = 1, CLOSE = 2, WRITE = 5, READ = 6, EXIT = 0x20, TO_READ = 1, TO_WRITE = 5 };

static uint32_t call(uint32_t number, const void *arguments) {
  register uint32_t r0 __asm__("r0") = number;
  register const void *r1 __asm__("r1") = arguments;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static uint32_t opened(const char *name, uint32_t mode) {
  uint32_t length = 0;
  while (name[length]) length++;
  const uint32_t arguments[3] = {(uint32_t)name, mode, length};
  return call(OPEN, arguments);
}

uint32_t board_read(const char *name, void *to, uint32_t room) {
  const uint32_t file = opened(name, TO_READ), arguments[3] = {file, (uint32_t)to, room};
  const uint32_t left = call(READ, arguments);
  call(CLOSE, &file);
  return room - left;
}

void board_write(const char *name, const void *from, uint32_t bytes) {
  const uint32_t file = opened(name, TO_WRITE), arguments[3] = {file, (uint32_t)from, bytes};
  call(WRITE, arguments);
  call(CLOSE, &file);
}

void board_exit(int code) {
  const uint32_t arguments[2] = {0x20026, (uint32_t)code};
  for (;;) call(EXIT, arguments);
}

/* ---- the clock: SysTick at 25 MHz of virtual time ------------------------------------------ */

#define SYSTICK ((volatile uint32_t *)0xE000E010)

uint32_t board_ticks(void) {
  if (!(SYSTICK[0] & 1)) SYSTICK[1] = 0xFFFFFF, SYSTICK[2] = 0, SYSTICK[0] = 5;
  return 0xFFFFFF - SYSTICK[2];
}

/* ---- the C library ------------------------------------------------------------------------- */

typedef uint32_t word __attribute__((may_alias, aligned(1)));

void *memcpy(void *to, const void *from, size_t count) {
  uint8_t *t = to;
  const uint8_t *f = from;
  for (; count >= 4; count -= 4, t += 4, f += 4) *(word *)t = *(const word *)f;
  while (count--) *t++ = *f++;
  return to;
}

void *memmove(void *to, const void *from, size_t count) {
  uint8_t *t = to;
  const uint8_t *f = from;
  if (t <= f) return memcpy(to, from, count);
  while (count--) t[count] = f[count];
  return to;
}

void *memset(void *to, int value, size_t count) {
  uint8_t *t = to;
  const uint32_t four = 0x01010101u * (uint8_t)value;
  for (; count >= 4; count -= 4, t += 4) *(word *)t = four;
  while (count--) *t++ = (uint8_t)value;
  return to;
}

int memcmp(const void *a, const void *b, size_t count) {
  const uint8_t *x = a, *y = b;
  for (; count; count--, x++, y++)
    if (*x != *y) return *x - *y;
  return 0;
}
