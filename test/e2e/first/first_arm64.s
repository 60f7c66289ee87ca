// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// struct sockaddr_in: AF_INET, port 83, 127.77.255.1.
DATA address<>+0(SB)/8, $0x01ff4d7f53000002
DATA address<>+8(SB)/8, $0
GLOBL address<>(SB), RODATA|NOPTR, $16

TEXT ·first(SB), NOSPLIT|NOFRAME, $0
	MOVD $17, R0 // SIGCHLD
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8 // clone
	SVC

	MOVD $2, R0 // AF_INET
	MOVD $2, R1 // SOCK_DGRAM
	MOVD $0, R2
	MOVD $198, R8 // socket
	SVC

	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $address<>(SB), R4
	MOVD $16, R5
	MOVD $206, R8 // sendto
	SVC

	MOVD $-1, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $260, R8 // wait4: the parent's child
	SVC

	MOVD $0, R0
	MOVD $94, R8 // exit_group
	SVC
