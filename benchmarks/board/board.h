/* board.h: an emulated board without a C library. */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

/* Files of the machine that emulates; how many bytes were read. */
uint32_t board_read(const char *name, void *to, uint32_t room);
void board_write(const char *name, const void *from, uint32_t bytes);
void board_exit(int code) __attribute__((noreturn));

/* Of 40 instructions, where each takes a nanosecond; 24 bits. */
uint32_t board_ticks(void);

/* The most that the stack has held. */
uint32_t board_stack_bytes(void);

#endif
