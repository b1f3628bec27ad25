/** The difference of two texts, line by line. Pure. */

export interface IDiffLine {
  kind: 'same' | 'added' | 'removed';
  text: string;
}

/** The shortest edit from `before` to `after`, by the longest common subsequence of their lines. */
export function diffLines(before: string, after: string): IDiffLine[] {
  const [a, b] = [before.split('\n'), after.split('\n')];
  const length = commonLengths(a, b);
  const lines: IDiffLine[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push({ kind: 'same', text: a[i] });
      i++;
      j++;
    } else if (j >= b.length || (i < a.length && length[i + 1][j] >= length[i][j + 1])) {
      lines.push({ kind: 'removed', text: a[i++] });
    } else {
      lines.push({ kind: 'added', text: b[j++] });
    }
  }
  return lines;
}

/** `length[i][j]`: common lines of `a` from i and `b` from j. */
function commonLengths(a: string[], b: string[]): Uint16Array[] {
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? length[i + 1][j + 1] + 1 : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  return length;
}

/** What the lines are after the change. */
export function applied(lines: IDiffLine[]): string {
  return lines
    .filter(line => line.kind !== 'removed')
    .map(line => line.text)
    .join('\n');
}
