//! Byte buffers that are zeroed once and used again and again.
//!
//! Invariant of [`Buffer`]: `start <= end <= bytes.len()`; `bytes` is initialised over its whole
//! length.

/// Bytes of the smallest buffer handed out.
const SMALLEST_BYTES: usize = 8 << 10;
/// Buffers above this size are given back to the allocator: they are rare and large.
const LARGEST_KEPT_BYTES: usize = 4 << 20;
/// All buffers that one connection's pool keeps idle.
const MAX_IDLE_BYTES: usize = 4 << 20;

/// A byte buffer filled from the front and emptied from the front.
#[derive(Debug, Default)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// A buffer of exactly `capacity` bytes.
    pub fn new(capacity: usize) -> Buffer {
        Buffer { bytes: vec![0; capacity], start: 0, end: 0 }
    }

    /// What was put in and not yet taken out.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// Free bytes behind what was put in.
    pub fn room(&self) -> usize {
        self.bytes.len() - self.end
    }

    /// The first `count` free bytes (all of them, where fewer are free).
    pub fn space(&mut self, count: usize) -> &mut [u8] {
        let end = self.bytes.len().min(self.end.saturating_add(count));
        self.bytes.get_mut(self.end..end).unwrap_or_default()
    }

    /// Counts the first `count` free bytes as filled.
    pub fn commit(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end.saturating_add(count));
    }

    /// Appends as much of `data` as there is room for; returns how much.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let space = self.space(data.len());
        let count = space.len();
        space.copy_from_slice(data.get(..count).unwrap_or_default());
        self.commit(count);
        count
    }

    /// Drops the first `count` filled bytes; an empty buffer begins again at its front.
    pub fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
        if self.start == self.end {
            self.clear();
        }
    }

    /// Moves what is filled to the front.
    pub fn compact(&mut self) {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }

    /// Empties it.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Bytes of memory behind it.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }
}

/// Idle buffers of one connection.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Vec<Buffer>,
    idle_bytes: usize,
}

impl Pool {
    /// An empty buffer with room for at least `count` bytes. New memory is taken from the system
    /// zeroed, hence untouched until it is filled.
    pub fn take(&mut self, count: usize) -> Buffer {
        let fits = |buffer: &Buffer| {
            buffer.capacity() >= count && buffer.capacity() / 8 <= count.max(SMALLEST_BYTES)
        };
        match self.idle.iter().rposition(fits) {
            Some(index) => {
                let buffer = self.idle.swap_remove(index);
                self.idle_bytes -= buffer.capacity();
                buffer
            }
            None if count > LARGEST_KEPT_BYTES => Buffer::new(count),
            None => Buffer::new(count.max(SMALLEST_BYTES).next_power_of_two()),
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, mut buffer: Buffer) {
        let idle_bytes = self.idle_bytes + buffer.capacity();
        if buffer.capacity() < SMALLEST_BYTES || buffer.capacity() > LARGEST_KEPT_BYTES {
            return;
        }
        if idle_bytes <= MAX_IDLE_BYTES {
            buffer.clear();
            self.idle.push(buffer);
            self.idle_bytes = idle_bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_and_empties_from_the_front() {
        let mut buffer = Buffer::new(8);
        assert_eq!(buffer.append(b"abcdef"), 6);
        buffer.consume(4);
        assert_eq!(buffer.append(b"xyz"), 2);
        buffer.compact();
        assert_eq!((buffer.filled(), buffer.room()), (&b"efxy"[..], 4));
        buffer.consume(100);
        assert_eq!((buffer.filled(), buffer.room()), (&b""[..], 8));
    }

    #[test]
    fn the_pool_keeps_a_bounded_amount() {
        let mut pool = Pool::default();
        let many: Vec<_> = (0..100).map(|_| pool.take(100_000)).collect();
        many.into_iter().for_each(|buffer| pool.give(buffer));
        assert!(pool.idle_bytes <= MAX_IDLE_BYTES);
        assert!(pool.take(100_000).capacity() >= 100_000);
        pool.give(Buffer::new(32 << 20));
        assert!(pool.idle_bytes <= MAX_IDLE_BYTES);
    }
}
