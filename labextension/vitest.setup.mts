// What JupyterLab's modules want at import, and jsdom lacks.
const page = globalThis as unknown as Record<string, unknown>;
page.DragEvent ??= class extends Event {};
page.matchMedia ??= (media: string) => ({ matches: false, media, addEventListener() {}, removeEventListener() {} });
page.ResizeObserver ??= class {
  observe() {}
  unobserve() {}
  disconnect() {}
};
page.IntersectionObserver ??= page.ResizeObserver;
