// Words that one text has and the other has not, by longest common subsequence.

const LARGEST_TABLE = 4_000_000; // cells; two texts of 2,000 words that share neither beginning nor end

const words = (text) => text.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) ?? [];

// Both texts as [{text, changed}], or null where they are too long to compare.
export function difference(left, right) {
  const a = words(left), b = words(right);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const rows = a.length - start - end, columns = b.length - start - end;
  if ((rows + 1) * (columns + 1) > LARGEST_TABLE) return null;
  const width = columns + 1, common = new Uint32Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      common[i * width + j] = a[start + i] === b[start + j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
  const inA = new Array(a.length).fill(false), inB = new Array(b.length).fill(false);
  for (let i = 0, j = 0; i < rows || j < columns;) {
    if (i < rows && j < columns && a[start + i] === b[start + j]) { i++; j++; }
    else if (j === columns || (i < rows && common[(i + 1) * width + j] >= common[i * width + j + 1])) inA[start + i++] = true;
    else inB[start + j++] = true;
  }
  return [joined(a, inA), joined(b, inB)];
}

function joined(texts, changed) {
  const parts = [];
  texts.forEach((text, i) => {
    if (parts.length && parts.at(-1).changed === changed[i]) parts.at(-1).text += text;
    else parts.push({ text, changed: changed[i] });
  });
  return parts;
}
