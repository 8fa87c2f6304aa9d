// The picture of a tab: one request at a time. What is asked for meanwhile is the next one; of
// several only the last, so that a slider never lags. A walk asks for where it is by now.
const view = {
  id: '', version: 0, busy: false, wanted: null, playing: false, frames: 0, since: 0, at: 0,
  url: null,

  begin(id) {
    this.id = id;
    // Quasar's have no names for who can't see them.
    const choosing = document.querySelectorAll('.drop .q-btn, .drop input');
    for (const element of choosing) element.ariaLabel = 'Choose a picture to project';
    this.show();
  },
  show() { this.wanted = `v=${++this.version}`; this.next(); },

  play(seconds) {
    this.seconds = seconds;
    this.began = performance.now() - 1000 * this.at * seconds;
    this.frames = 0;
    this.since = performance.now();
    if (!this.playing) { this.playing = true; this.next(); }
  },
  // Where the walk was, in seeds from its first.
  stop() {
    const at = this.at;
    this.at = 0;
    this.playing = false;
    document.getElementById('speed').textContent = '';
    return at;
  },

  async next() {
    if (this.busy) return;
    this.busy = true;
    while (this.playing || this.wanted) {
      let query = this.wanted;
      this.wanted = null;
      if (this.playing) {
        this.at = (performance.now() - this.began) / 1000 / this.seconds;
        query = `at=${this.at}`;
      }
      await this.fetch(`/picture/${this.id}.png?${query}`);
      if (this.playing) await new Promise(requestAnimationFrame);
    }
    this.busy = false;
  },

  async fetch(address) {
    const trouble = document.getElementById('trouble');
    try {
      const answer = await fetch(address);
      if (!answer.ok) throw new Error(await answer.text());
      const url = URL.createObjectURL(await answer.blob());
      const img = document.getElementById('shown');
      img.src = url;
      await img.decode();
      if (this.url) URL.revokeObjectURL(this.url);
      this.url = url;
      trouble.textContent = '';
    } catch (error) {
      trouble.textContent = error.message;
      if (this.playing) emitEvent('walk_broke');
      this.stop();
    }
    this.frames += 1;
    const passed = performance.now() - this.since;
    if (passed > 1000) {
      const speed = document.getElementById('speed');
      speed.textContent = this.playing ? `${(1000 * this.frames / passed).toFixed(0)} frames/s` : '';
      this.frames = 0;
      this.since = performance.now();
    }
  },
};
window.view = view;
