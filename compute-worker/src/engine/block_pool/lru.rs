//! A doubly linked list over block numbers, ordered by last use. All operations take constant time and no memory.

/// No block.
const NONE: u32 = u32::MAX;

/// Which blocks are in the list, oldest first.
pub(super) struct Lru {
    /// For each block its older and newer neighbour; unspecified while it is not in the list.
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl Lru {
    /// An empty list with room for blocks `0..blocks`.
    pub(super) fn new(blocks: usize) -> Self {
        Self { links: vec![(NONE, NONE); blocks], oldest: NONE, newest: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block that is not in the list.
    pub(super) fn push_newest(&mut self, id: u32) {
        self.links[id as usize] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = id,
            newest => self.links[newest as usize].1 = id,
        }
        self.newest = id;
        self.len += 1;
    }

    /// Takes a block out that is in the list.
    pub(super) fn remove(&mut self, id: u32) {
        let (older, newer) = self.links[id as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].1 = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].0 = older,
        }
        self.len -= 1;
    }

    /// Takes the oldest block out.
    pub(super) fn pop_oldest(&mut self) -> Option<u32> {
        let id = self.oldest;
        (id != NONE).then(|| {
            self.remove(id);
            id
        })
    }
}
