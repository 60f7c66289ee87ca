// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// struct sockaddr_in: AF_INET, port 83, 127.77.255.1.
DATA address<>+0(SB)/8, $0x01ff4d7f53000002
DATA address<>+8(SB)/8, $0
GLOBL address<>(SB), RODATA|NOPTR, $16

TEXT ·first(SB), NOSPLIT|NOFRAME, $0
	MOVQ $56, AX // clone
	MOVQ $17, DI // SIGCHLD
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	XORL R8, R8
	SYSCALL

	MOVQ $41, AX // socket
	MOVQ $2, DI  // AF_INET
	MOVQ $2, SI  // SOCK_DGRAM
	XORL DX, DX
	SYSCALL

	MOVQ AX, DI
	MOVQ $44, AX // sendto
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	LEAQ address<>(SB), R8
	MOVQ $16, R9
	SYSCALL

	MOVQ $61, AX // wait4: the parent's child
	MOVQ $-1, DI
	XORL SI, SI
	XORL DX, DX
	XORL R10, R10
	SYSCALL

	MOVQ $231, AX // exit_group
	XORL DI, DI
	SYSCALL
