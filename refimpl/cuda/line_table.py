"""Which line of the source an instruction of a shared library belongs to, by the library's own debug information.

What addr2line does, for machines whose compiler comes without it. For ELF (Linux) and Mach-O (macOS) with 64-bit
addresses and DWARF version 4 (-gdwarf-4), whose line table is a small program: run it, and every row that it emits is
one (address, file, line).
"""

import struct
from collections.abc import Iterator
from pathlib import Path

Row = tuple[int, str, int]  # address, file with its folder, line; line 0 ends a stretch of code


def rows(library: Path) -> list[Row]:
    """All rows of all line tables of the library, by address."""
    content = library.read_bytes()
    data = elf_section(content, b".debug_line") if content[:4] == b"\x7fELF" else mach_section(content, b"__debug_line")
    all_rows: list[Row] = []
    start = 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        all_rows += table(data[start + 4 : start + 4 + length])
        start += 4 + length
    return sorted(all_rows, key=lambda row: row[0])


def elf_section(elf: bytes, section_name: bytes) -> bytes:
    """The bytes of one section of an ELF file; none if it is not there."""
    (offset,) = struct.unpack_from("<Q", elf, 40)
    size, count, names = struct.unpack_from("<HHH", elf, 58)
    headers = [struct.unpack_from("<IIQQQQ", elf, offset + i * size) for i in range(count)]
    name_table = headers[names][4]
    for name, _, _, _, start, length in headers:
        at = name_table + name
        if elf[at : elf.index(b"\0", at)] == section_name:
            return elf[start : start + length]
    return b""


LC_SEGMENT_64 = 0x19


def mach_section(mach: bytes, section_name: bytes) -> bytes:
    """The bytes of one section of a Mach-O file; none if it is not there."""
    (commands,) = struct.unpack_from("<I", mach, 16)
    command = 32
    for _ in range(commands):
        kind, length = struct.unpack_from("<II", mach, command)
        sections = struct.unpack_from("<I", mach, command + 64)[0] if kind == LC_SEGMENT_64 else 0
        for section in range(command + 72, command + 72 + 80 * sections, 80):
            name, _, _, size, offset = struct.unpack_from("<16s16sQQI", mach, section)
            if name.rstrip(b"\0") == section_name:
                return mach[offset : offset + size]
        command += length
    return b""


class Reader:
    """Goes through bytes from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self, code: str) -> int:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return int(value)

    def text(self) -> str:
        start, self.at = self.at, self.data.index(b"\0", self.at) + 1
        return self.data[start : self.at - 1].decode(errors="replace")

    def leb(self, signed: bool = False) -> int:
        """A number in groups of 7 bits, the lowest first; the eighth bit says that another one follows."""
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value - (1 << shift) if signed and byte & 0x40 else value


def table(data: bytes) -> Iterator[Row]:
    """The rows of one table: section 6.2 of the DWARF standard, version 4."""
    r = Reader(data)
    if r.number("H") != 4:
        return
    program = r.number("I") + r.at
    unit, _, _, line_base, line_range, opcode_base = (r.number(code) for code in "BBBbBB")
    operands = [r.number("B") for _ in range(opcode_base - 1)]
    folders = [""]
    while folder := r.text():
        folders.append(folder)
    files = [""]
    while name := r.text():
        files.append(f"{folders[r.leb()]}/{name}")
        r.leb(), r.leb()  # when it was changed, and its length

    r.at = program
    address, file, line = 0, 1, 1
    while r.at < len(data):
        opcode = r.number("B")
        if opcode >= opcode_base:  # one byte moves both on, and emits a row
            address += (opcode - opcode_base) // line_range * unit
            line += line_base + (opcode - opcode_base) % line_range
            yield address, files[file], line
        elif opcode == 0:  # extended: a length, then an opcode of its own
            end = r.leb() + r.at
            extended = r.number("B")
            if extended == 1:  # end of sequence
                yield address, files[file], 0
                address, file, line = 0, 1, 1
            elif extended == 2:  # set address
                address = r.number("Q")
            r.at = end
        elif opcode == 1:  # copy
            yield address, files[file], line
        elif opcode == 2:  # advance pc
            address += r.leb() * unit
        elif opcode == 3:  # advance line
            line += r.leb(signed=True)
        elif opcode == 4:  # set file
            file = r.leb()
        elif opcode == 8:  # const add pc
            address += (255 - opcode_base) // line_range * unit
        elif opcode == 9:  # fixed advance pc
            address += r.number("H")
        else:  # column, basic block and others that do not move the line
            for _ in range(operands[opcode - 1]):
                r.leb()
