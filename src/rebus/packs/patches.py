"""Best-fit decreasing under a limit on visual patches, where pictures come in their own sizes.

Documents are then equal in nothing, so each is placed by itself, and the tightest pack may lack room for its pictures.
Packs are filed by the tokens they have left, in classes by their room for pictures: powers of two of what is left of
patches or of images, whichever is scarcer. In a class above the document's own every pack has the room; else a few
are tried, so a pack may be opened although one with room exists, but no limit is ever broken.
"""

from bisect import bisect_left

import numpy as np

from rebus.packs.binning import NOT_PLACED, decreasing

NUM_CLASSES = 6
NUM_TRIED = 6  # packs of one class looked at before the next class


class _Class:
    """Open packs with alike room for pictures: the numbers of tokens left, sorted, and the packs of each."""

    def __init__(self) -> None:
        self.rooms: list[int] = []
        self.packs: dict[int, list[int]] = {}

    def add(self, tokens: int, pack: int) -> None:
        if tokens in self.packs:
            self.packs[tokens].append(pack)
        else:
            self.packs[tokens] = [pack]
            self.rooms.insert(bisect_left(self.rooms, tokens), tokens)

    def remove_last(self, tokens: int) -> None:
        packs = self.packs[tokens]
        packs.pop()
        if not packs:
            del self.packs[tokens]
            del self.rooms[bisect_left(self.rooms, tokens)]


class _OpenPacks:
    """tokens, images, patches: what each pack has left."""

    def __init__(self, capacity: int, max_images: int, max_patches: int) -> None:
        self.full = (capacity, max_images, max_patches)
        self.classes = [_Class() for _ in range(NUM_CLASSES + 2)]
        self.image_class = [_class_of(number, max_images) for number in range(max_images + 1)]
        self.patch_class = [_class_of(number, max_patches) for number in range(max_patches + 1)]
        self.tokens: list[int] = []
        self.images: list[int] = []
        self.patches: list[int] = []

    def class_of(self, images: int, patches: int) -> int:
        return min(self.image_class[images], self.patch_class[patches])

    def find(self, tokens: int, images: int, patches: int) -> int:
        """A pack with room for a document, of the packs looked at the one with the fewest tokens left; -1: none."""
        best, least = NOT_PLACED, self.full[0] + 1
        for one in self.classes[self.class_of(images, patches) :]:
            start = bisect_left(one.rooms, tokens)
            for left in one.rooms[start : start + NUM_TRIED]:
                if left >= least:
                    break
                pack = one.packs[left][-1]
                if self.patches[pack] >= patches and self.images[pack] >= images:
                    best, least = pack, left
                    break
        return best

    def put(self, pack: int, tokens: int, images: int, patches: int) -> int:
        """Puts a document into a pack that `find` found; -1 opens one. Returns the pack."""
        if pack < 0:
            pack = len(self.tokens)
            for left, full in zip((self.tokens, self.images, self.patches), self.full, strict=True):
                left.append(full)
        else:
            self.classes[self.class_of(self.images[pack], self.patches[pack])].remove_last(self.tokens[pack])
        self.tokens[pack] -= tokens
        self.images[pack] -= images
        self.patches[pack] -= patches
        if self.tokens[pack]:
            one = self.class_of(self.images[pack], self.patches[pack])
            self.classes[one].add(self.tokens[pack], pack)
        return pack


def _class_of(number: int, limit: int) -> int:
    """0: none. Then powers of two, the last but one from half the limit on."""
    step = max(1, limit >> (NUM_CLASSES - 1))
    return min((number // step).bit_length() + 1, NUM_CLASSES + 1) if number else 0


def best_fit_patches(
    lengths: np.ndarray,
    capacity: int,
    num_images: np.ndarray,
    max_images: int | None,
    num_patches: np.ndarray,
    max_patches: int,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Longest document first, each into a pack with room for its tokens, images and patches. See binning."""
    limit = capacity if max_images is None else min(max_images, capacity)  # an image takes a token at least
    max_patches = min(max_patches, int(num_patches.sum(dtype=np.int64)))
    open_packs = _OpenPacks(capacity, limit, max_patches)
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int32)
    order = decreasing([lengths, num_patches], order)
    columns = (one[order].tolist() for one in (lengths, num_images, num_patches))
    placed = [
        open_packs.put(open_packs.find(*sizes), *sizes)
        if sizes[0] <= capacity and sizes[1] <= limit and sizes[2] <= max_patches
        else NOT_PLACED
        for sizes in zip(*columns, strict=True)
    ]
    packs[order] = placed
    return packs
