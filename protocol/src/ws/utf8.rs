//! UTF-8 validation of a text that comes in pieces, failing at the first byte that no valid text can have there.

/// What is known of the text so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Utf8 {
    /// The start of a character whose rest is still to come.
    open: [u8; 4],
    open_bytes: u8,
}

/// The text is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

impl Utf8 {
    /// Takes the next piece.
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), NotUtf8> {
        while self.open_bytes > 0 {
            let Some((byte, rest)) = piece.split_first() else { return Ok(()) };
            piece = rest;
            let end = usize::from(self.open_bytes) + 1;
            self.open[end - 1] = *byte;
            self.open_bytes = end as u8;
            match std::str::from_utf8(&self.open[..end]) {
                Ok(_) => self.open_bytes = 0,
                // Still a possible start: at most three bytes, as four decide any character.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(NotUtf8),
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => Ok(()),
            Err(error) if error.error_len().is_none() => {
                let start = &piece[error.valid_up_to()..];
                self.open[..start.len()].copy_from_slice(start);
                self.open_bytes = start.len() as u8;
                Ok(())
            }
            Err(_) => Err(NotUtf8),
        }
    }

    /// The text ends here.
    pub fn finish(self) -> Result<(), NotUtf8> {
        if self.open_bytes == 0 { Ok(()) } else { Err(NotUtf8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&[u8]; 12] = [
        b"",
        b"plain",
        "κόσμε €𐍈 ü".as_bytes(),
        &[0xf4, 0x8f, 0xbf, 0xbf],
        &[0xf4, 0x90, 0x80, 0x80],
        &[0xed, 0xa0, 0x80],
        &[0xc0, 0xaf],
        &[0xe2, 0x82],
        &[0xf0, 0x90, 0x8d],
        &[0x80],
        &[0xff],
        b"tail \xf0\x9f\x98\x80\xf0\x9f\x98",
    ];

    #[test]
    fn agrees_with_the_whole_at_every_cut() {
        for text in TEXTS {
            for first in 0..=text.len() {
                for second in first..=text.len() {
                    let mut state = Utf8::default();
                    let pieces = [&text[..first], &text[first..second], &text[second..]];
                    let found = pieces.iter().try_for_each(|piece| state.push(piece));
                    let found = found.and_then(|()| state.finish()).is_ok();
                    assert_eq!(found, std::str::from_utf8(text).is_ok(), "{text:x?} at {first}, {second}");
                }
            }
        }
    }

    #[test]
    fn fails_at_the_first_impossible_byte() {
        let mut state = Utf8::default();
        assert_eq!(state.push(&[0xf4]), Ok(()));
        assert_eq!(state.push(&[0x90]), Err(NotUtf8));
    }
}
