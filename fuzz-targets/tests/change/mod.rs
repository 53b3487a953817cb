//! Random changes of known inputs.

/// xorshift64*: fast, and the same everywhere.
pub(crate) struct Random(u64);

const NUMBERS: [u32; 12] = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x400,
    0x1001,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
];

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 32).expect("32 bits") % end
    }

    /// One of `known`, changed in one to four places.
    pub(crate) fn change(&mut self, known: &[Vec<u8>]) -> Vec<u8> {
        let mut input = known[self.below(known.len())].clone();
        for _ in 0..=self.below(4) {
            self.change_once(&mut input, known);
        }
        input
    }

    fn change_once(&mut self, input: &mut Vec<u8>, known: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        match self.below(8) {
            0 => input.truncate(at),
            1 => input.insert(at, self.byte()),
            2 => {
                let other = &known[self.below(known.len())];
                input.truncate(at);
                input.extend(&other[self.below(other.len() + 1)..]);
            }
            3 if !input.is_empty() => {
                let piece = input[at / 2..at].to_vec();
                input.extend(piece);
            }
            4 if input.len() >= at + 4 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                input[at..at + 4].copy_from_slice(&number.to_le_bytes());
            }
            5 if at < input.len() => {
                input.remove(at);
            }
            6 if at < input.len() => input[at] = self.byte(),
            _ if at < input.len() => input[at] ^= 1 << self.below(8),
            _ => input.push(self.byte()),
        }
    }
}
