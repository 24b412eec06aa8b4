// Which characters of a text changed.

interface Piece {
  text: string;
  changed: boolean;
}

/** More than so many pairs of characters are not compared: the text is then shown unmarked. */
const MOST_PAIRS = 4_000_000;

/** Both texts in pieces: what of `before` is gone, and what of `after` is new. */
export function differences(before: string, after: string): { before: Piece[]; after: Piece[] } {
  const first = [...before];
  const second = [...after];
  if (first.length * second.length > MOST_PAIRS) {
    return { before: [{ text: before, changed: false }], after: [{ text: after, changed: false }] };
  }
  const kept = commonPlaces(first, second);
  return {
    before: pieces(first, new Set(kept.map(([place]) => place))),
    after: pieces(second, new Set(kept.map(([, place]) => place))),
  };
}

/** Places of a longest common subsequence in both. */
function commonPlaces(first: string[], second: string[]): [number, number][] {
  const width = second.length + 1;
  const lengths = new Uint16Array((first.length + 1) * width);
  for (let i = first.length - 1; i >= 0; i--) {
    for (let j = second.length - 1; j >= 0; j--) {
      lengths[i * width + j] =
        first[i] === second[j]
          ? lengths[(i + 1) * width + j + 1]! + 1
          : Math.max(lengths[(i + 1) * width + j]!, lengths[i * width + j + 1]!);
    }
  }
  const found: [number, number][] = [];
  for (let i = 0, j = 0; i < first.length && j < second.length;) {
    if (first[i] === second[j]) found.push([i++, j++]);
    else if (lengths[(i + 1) * width + j]! >= lengths[i * width + j + 1]!) i++;
    else j++;
  }
  return found;
}

function pieces(characters: string[], kept: ReadonlySet<number>): Piece[] {
  const made: Piece[] = [];
  characters.forEach((character, place) => {
    const changed = !kept.has(place);
    const last = made.at(-1);
    if (last && last.changed === changed) last.text += character;
    else made.push({ text: character, changed });
  });
  return made;
}
