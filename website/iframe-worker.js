// The search of a page that was opened as a file:// runs in a hidden frame: browsers allow no Worker
// there. MkDocs' plugin `offline` knows such a file by its name and loads one from unpkg.com otherwise.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement('iframe');
      frame.hidden = true;
      frame.srcdoc = '<body></body>';
      this.frame = frame;
      this.ready = new Promise((resolve) => {
        frame.onload = () => {
          const inside = frame.contentWindow;
          inside.postMessage = (data) => this.dispatchEvent(new MessageEvent('message', {data}));
          const script = inside.document.createElement('script');
          script.src = url;
          script.onload = () => resolve(inside);
          inside.document.body.append(script);
        };
      });
      document.body.append(frame);
    }

    postMessage(data) {
      this.ready.then((inside) => inside.dispatchEvent(new MessageEvent('message', {data})));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
