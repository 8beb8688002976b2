"""Folders of images as a source: flat, with class folders, with train and test around either; in archives, too."""

from collections.abc import Iterator, Sequence

from diffcli.data.files import FileTree
from diffcli.data.listing import Split, list_images
from diffcli.prep.items import SOURCE, Item, Items, Source, tree_fingerprint


class FileItems:
    """Encoded images of a tree."""

    def __init__(self, tree: FileTree, names: list[str], labels: list[int] | None) -> None:
        self.tree, self.names, self.labels = tree, names, labels

    def __len__(self) -> int:
        return len(self.names)

    def items(self, positions: Sequence[int]) -> Iterator[Item]:
        for position in positions:
            name = self.names[position]
            yield Item(name, None if self.labels is None else self.labels[position], self.tree.locations[name])


def images_of(tree: FileTree) -> Source:
    """The images of a tree, split and labelled as their folders say."""
    listings = list_images(tree, SOURCE)
    splits: dict[Split, Items] = {split: FileItems(tree, x.names, x.labels) for split, x in listings.items()}
    classes = next(iter(listings.values())).classes
    return Source(splits, classes, tree_fingerprint(tree, [name for x in listings.values() for name in x.names]))
