#include "textflag.h"

// quote, backslash, last control character, low nibble; then which of the
// bytes behind a backslash end a two-byte escape, by nibbles: a byte b does if
// low[b&15] & high[b>>4] is not zero (bit 0 for 0x2_, 1 for 0x5_, 2 for 0x6_, 3 for 0x7_).
DATA consts<>+0(SB)/8, $0x2222222222222222
DATA consts<>+8(SB)/8, $0x5c5c5c5c5c5c5c5c
DATA consts<>+16(SB)/8, $0x1f1f1f1f1f1f1f1f
DATA consts<>+24(SB)/8, $0x0f0f0f0f0f0f0f0f
DATA consts<>+32(SB)/8, $0x00040008000d0000
DATA consts<>+40(SB)/8, $0x0104000200000000
DATA consts<>+48(SB)/8, $0x0804020000010000
DATA consts<>+56(SB)/8, $0x0000000000000000
GLOBL consts<>(SB), RODATA|NOPTR, $64

// func passAVX2(b []byte) (at int, found uint64)
TEXT ·passAVX2(SB), NOSPLIT, $0-40
	MOVQ b_base+0(FP), SI
	MOVQ b_len+8(FP), CX
	SUBQ $64, CX
	XORQ DX, DX // at
	XORQ R8, R8 // 1: the byte at DX is escaped by the one before
	XORQ R9, R9 // what was found

	VPBROADCASTQ   consts<>+0(SB), Y0
	VPBROADCASTQ   consts<>+8(SB), Y1
	VPBROADCASTQ   consts<>+16(SB), Y2
	VPBROADCASTQ   consts<>+24(SB), Y3
	VBROADCASTI128 consts<>+32(SB), Y12
	VBROADCASTI128 consts<>+48(SB), Y13
	VPXOR          Y14, Y14, Y14

block:
	CMPQ DX, CX
	JGT  done

	// Quotes and control characters into Y6 and Y8, backslashes into Y7 and Y9.
	VMOVDQU  (SI)(DX*1), Y4
	VMOVDQU  32(SI)(DX*1), Y5
	VPCMPEQB Y4, Y0, Y6
	VPMINUB  Y4, Y2, Y7
	VPCMPEQB Y4, Y7, Y7
	VPOR     Y6, Y7, Y6
	VPCMPEQB Y4, Y1, Y7
	VPCMPEQB Y5, Y0, Y8
	VPMINUB  Y5, Y2, Y9
	VPCMPEQB Y5, Y9, Y9
	VPOR     Y8, Y9, Y8
	VPCMPEQB Y5, Y1, Y9
	VPOR     Y6, Y7, Y10
	VPOR     Y8, Y9, Y11
	VPOR     Y10, Y11, Y10
	VPTEST   Y10, Y10
	JNZ      special
	TESTQ    R8, R8
	JNZ      special
	ADDQ     $64, DX
	JMP      block

special:
	VPMOVMSKB Y6, AX
	VPMOVMSKB Y8, R11
	SHLQ      $32, R11
	ORQ       R11, AX  // quotes and control characters
	VPMOVMSKB Y7, BX
	VPMOVMSKB Y9, R11
	SHLQ      $32, R11
	ORQ       R11, BX  // backslashes
	MOVQ      BX, R11
	ORQ       R8, R11
	JNZ       escapes
	BSFQ      AX, AX
	ADDQ      AX, DX
	ORQ       $4, R9
	JMP       done

escapes:
	// R11: bytes that end no escape of two.
	VPSHUFB   Y4, Y12, Y10
	VPSRLW    $4, Y4, Y11
	VPAND     Y3, Y11, Y11
	VPSHUFB   Y11, Y13, Y11
	VPAND     Y10, Y11, Y10
	VPCMPEQB  Y14, Y10, Y10
	VPMOVMSKB Y10, R11
	VPSHUFB   Y5, Y12, Y10
	VPSRLW    $4, Y5, Y11
	VPAND     Y3, Y11, Y11
	VPSHUFB   Y11, Y13, Y11
	VPAND     Y10, Y11, Y10
	VPCMPEQB  Y14, Y10, Y10
	VPMOVMSKB Y10, R12
	SHLQ      $32, R12
	ORQ       R12, R11

	// Every second backslash of a run escapes: R10 gets the bytes that are
	// escaped, R13 whether the last of the block escapes the next block's first.
	MOVQ R8, R12
	NOTQ R12
	ANDQ BX, R12
	MOVQ $0xAAAAAAAAAAAAAAAA, DI
	LEAQ (R12)(R12*1), R13
	ORQ  DI, R13
	SUBQ R12, R13
	XORQ DI, R13
	MOVQ BX, R10
	ORQ  R8, R10
	XORQ R13, R10
	ANDQ BX, R13
	SHRQ $63, R13

	// It stops at what is special and not escaped, or escaped and not to be.
	MOVQ R10, DI
	NOTQ DI
	ANDQ AX, DI
	ANDQ R10, R11
	ORQ  R11, DI
	JNZ  stop
	ORQ  $2, R9
	MOVQ R13, R8
	ADDQ $64, DX
	JMP  block

stop:
	ORQ   $4, R9
	LEAQ  -1(DI), AX
	XORQ  DI, AX
	ANDQ  BX, AX   // backslashes before it
	JZ    where
	ORQ   $2, R9
where:
	BSFQ  DI, DI
	XORQ  R8, R8
	BTQ   DI, R10
	ADCQ  $0, R8
	ADDQ  DI, DX

done:
	VZEROUPPER
	ORQ  R8, R9
	MOVQ DX, at+24(FP)
	MOVQ R9, found+32(FP)
	RET
