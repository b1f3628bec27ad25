/** Pictures of an output as PNG, at most SIDE pixels wide and high, on white where they are transparent. */

export const SIDE = 1600;

export interface IPicture {
  mime: 'image/png';
  data: string;
  width: number;
  height: number;
}

/** The size that `width` x `height` has within `side`; never larger than it is. */
export function fit(width: number, height: number, side = SIDE): { width: number; height: number } {
  const factor = Math.min(1, side / Math.max(width, height, 1));
  return { width: Math.max(1, Math.round(width * factor)), height: Math.max(1, Math.round(height * factor)) };
}

/** The picture that a node shows: the largest `img`, `canvas` or `svg` in it; null if there is none. */
export async function pictureOf(node: HTMLElement): Promise<IPicture | null> {
  const layers = [...node.querySelectorAll<HTMLElement | SVGElement>('img, canvas, svg')].filter(isDrawn);
  const [first] = layers.sort((a, b) => areaOf(b) - areaOf(a));
  if (!first) {
    return null;
  }
  // Plotly stacks transparent layers of one size; a picture of the first alone would lack the text or the data.
  const stack = layers.filter(layer => layer.tagName === first.tagName && sameBox(layer, first)).reverse();
  const images = await Promise.all(inOrder(stack, node).map(drawable));
  const box = first.getBoundingClientRect();
  const natural = first instanceof HTMLImageElement && first.naturalWidth ? first.naturalWidth / box.width : 1;
  return paint(images, box.width * natural, box.height * natural);
}

/** A picture file of any kind that the browser shows, as PNG. */
export async function pictureOfFile(mime: string, base64: string): Promise<IPicture> {
  const image = await loadImage(`data:${mime};base64,${base64}`);
  return paint([image], image.naturalWidth || 800, image.naturalHeight || 600);
}

/** SVG source as PNG. */
export async function pictureOfSvg(source: string): Promise<IPicture> {
  const root = new DOMParser().parseFromString(source, 'image/svg+xml').documentElement;
  const [width, height] = svgSize(root);
  const image = await loadImage(svgUri(withSize(root, width, height)));
  return paint([image], width, height);
}

/** Width and height that an `svg` element asks for, in pixels. */
export function svgSize(root: Element): [number, number] {
  const box = (root.getAttribute('viewBox') ?? '')
    .trim()
    .split(/[\s,]+/)
    .map(Number);
  const length = (name: string): number => {
    const match = /^([\d.]+)(pt|px|)$/.exec((root.getAttribute(name) ?? '').trim());
    return match ? Number(match[1]) * (match[2] === 'pt' ? 4 / 3 : 1) : 0;
  };
  return [length('width') || box[2] || 800, length('height') || box[3] || 600];
}

function withSize(root: Element, width: number, height: number): string {
  const copy = root.cloneNode(true) as Element;
  copy.setAttribute('xmlns', 'http://www.w3.org/2000/svg');
  copy.setAttribute('width', String(width));
  copy.setAttribute('height', String(height));
  return new XMLSerializer().serializeToString(copy);
}

function svgUri(source: string): string {
  return `data:image/svg+xml;charset=utf-8,${encodeURIComponent(source)}`;
}

function paint(images: CanvasImageSource[], width: number, height: number): IPicture {
  const size = fit(width, height);
  const canvas = document.createElement('canvas');
  canvas.width = size.width;
  canvas.height = size.height;
  const context = canvas.getContext('2d') as CanvasRenderingContext2D;
  context.fillStyle = 'white';
  context.fillRect(0, 0, size.width, size.height);
  images.forEach(image => context.drawImage(image, 0, 0, size.width, size.height));
  const data = canvas.toDataURL('image/png').split(',')[1];
  return { mime: 'image/png', data, ...size };
}

async function drawable(layer: HTMLElement | SVGElement): Promise<CanvasImageSource> {
  if (layer instanceof SVGElement) {
    const { width, height } = layer.getBoundingClientRect();
    return loadImage(svgUri(withSize(layer, width, height)));
  }
  return layer as HTMLImageElement | HTMLCanvasElement;
}

function loadImage(uri: string): Promise<HTMLImageElement> {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error('The picture cannot be drawn.'));
    image.src = uri;
  });
}

function isDrawn(layer: HTMLElement | SVGElement): boolean {
  return areaOf(layer) > 32 * 32 && !layer.parentElement?.closest('svg');
}

function areaOf(layer: Element): number {
  const { width, height } = layer.getBoundingClientRect();
  return width * height;
}

function sameBox(a: Element, b: Element): boolean {
  const [one, other] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
  return Math.abs(one.x - other.x) < 2 && Math.abs(one.y - other.y) < 2 && Math.abs(one.width - other.width) < 2;
}

function inOrder(layers: (HTMLElement | SVGElement)[], node: HTMLElement): (HTMLElement | SVGElement)[] {
  const order = [...node.querySelectorAll('img, canvas, svg')];
  return layers.sort((a, b) => order.indexOf(a) - order.indexOf(b));
}
